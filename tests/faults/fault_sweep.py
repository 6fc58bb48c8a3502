"""The sweep: one command in one world, struck once at each of its points, and what the next command finds judged."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fault_cases import CASES
from injected_faults import Ended, Fault, Point, Server
from next_command import State

from malmen_cli.errors import ExitCode

ATTEMPTS = 3  # at a point: a file that somebody adds to a folder of modules shifts the number of a call
MISSED = "the call was not made: not the same calls each time"
DONE = (ExitCode.DONE, ExitCode.FACTS_FAILED_CHECK)


@dataclass
class Swept:
    """What came of the points of one command with one kind of fault.

    Attributes:
        calls: points there are; `tried` of them were struck. ends: of every point, in order, how the world ended.
        bad: a line for each broken promise.
    """

    calls: int
    tried: int = 0
    ends: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def count(self, end: str) -> int:
        return Counter(self.ends)[end]


class Sweep:
    """One case: its world, made once and put back before each point, its states before and after, and its points."""

    def __init__(self, name: str, server: Server, home: Path) -> None:
        """`home` is an empty folder; the world lies below it, always at the same path: the ledger knows that."""
        self.name, self.case, self.server = name, CASES[name], server
        self.folder, self.saved = home / "now", home / "saved"
        self.case.prepare(self.folder)
        self.folder.rename(self.saved)
        with self.restored():
            self.before = self.case.inspect(self.folder)
        with self.restored():
            ended, self.points = server.record(name, self.folder)
            if ended.code not in DONE:
                raise RuntimeError(f"{name} failed by itself: {ended.words}")
            self.after = self.case.inspect(self.folder)
        with self.restored():
            _, again = server.record(name, self.folder)
        calls, others = ([point.call for point in points] for points in (self.points, again))
        assert calls == others, f"{name} does not make the same calls each time: {_difference(calls, others)}"

    @cached_property
    def reads(self) -> list[Point]:
        """The points at which the command reads from its folder, or asks what is there."""
        with self.restored():
            return self.server.record(self.name, self.folder, reads=True)[1]

    def strike(
        self, fault: Fault, step: int = 1, repeat: int = 1, only: str = "", points: Sequence[Point] | None = None
    ) -> Swept:
        """Every `step`-th point (by default of those that change something) whose text holds `only`.

        Where that leaves the world as before, the same command is run again, every `repeat`-th time.
        """
        points = self.points if points is None else points
        swept, began = Swept(len(points)), time.monotonic()
        for index, point in list(enumerate(points))[step // 2 :: step]:
            if only not in point.text:
                continue
            again = swept.count("before") % repeat == 0
            for _ in range(ATTEMPTS):
                with self.restored():
                    end, problem = self._judge(point, fault, again)
                if problem != MISSED:
                    break
            swept.tried += 1
            swept.ends.append(end)
            if problem:
                swept.bad.append(f"{fault} at {index}, {point.text}: {problem}")
        swept.seconds = time.monotonic() - began
        return swept

    def _judge(self, point: Point, fault: Fault, again: bool) -> tuple[str, str]:
        """`before`, `after` or `neither`, and what is wrong in words; empty where nothing is."""
        try:
            ended = self.server.strike(self.name, self.folder, point, fault)
        except TimeoutError as error:
            return "neither", str(error)
        if problem := _unclean(ended, fault):
            return "neither", problem
        try:
            found = self.case.inspect(self.folder)
        except Exception as error:  # whatever it is: the next command must be able to go on
            return "neither", f"then {type(error).__name__}: {error}"
        end = self._name(found)
        if end == "neither":
            return end, "the state is neither as before nor as after"
        if ended.code in DONE and end != "after":
            return end, "it said that it was done, and it is not"
        if end == "before" and again and self.case.repeated and self.before != self.after:
            return end, self._again()
        return end, ""

    def _again(self) -> str:
        ended = self.server.run(self.name, self.folder)
        if ended.code not in DONE:
            return f"the same command again fails ({ended.code}): {ended.words}"
        try:
            return "" if self.case.inspect(self.folder) == self.after else "the same command again ends elsewhere"
        except Exception as error:
            return f"after the same command again {type(error).__name__}: {error}"

    def _name(self, state: State) -> str:
        if state == self.after:  # what settles ends as it began
            return "after"
        return "before" if state == self.before else "neither"

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The world as it was before the command, for as long as the body runs."""
        shutil.copytree(self.saved, self.folder, symlinks=True)
        try:
            yield
        finally:
            shutil.rmtree(self.folder)


def _unclean(ended: Ended, fault: Fault) -> str:
    """How a command ended that was struck: by the signal, or in words with an exit status of ours; empty if so."""
    if not ended.struck:
        return MISSED
    if fault == "SIGKILL":
        return "" if ended.code == -9 else f"it was to be killed, and ended with {ended.code}: {ended.words}"
    if "Traceback" in ended.words or "unexpected error" in ended.words:
        return f"an error without words of its own: {ended.words}"
    if ended.code not in set(ExitCode):
        return f"it ended with {ended.code}: {ended.words}"
    return "" if ended.code == 0 or ended.words.strip() else "it failed without a word"


def _difference(calls: list[str], others: list[str]) -> str:
    one, other = Counter(calls), Counter(others)
    return f"{dict(one - other)} and {dict(other - one)} of {len(calls)} and {len(others)}"
