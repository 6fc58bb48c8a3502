"""A recorded command cut at many moments: images of the disk, what the next command makes of each, and the losses."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recorded_commands import COMMANDS, NAIVE, Command, State
from recorded_writes import Recording, record
from simulated_disk import (
    PLAIN,
    Choice,
    Nodes,
    Operation,
    by_chance,
    clear,
    disk_at,
    fingerprint,
    lay_out,
    leave_stale_index,
    scan,
)

import malmen_cli


@dataclass
class Cuts:
    """A recording, the one folder that its files belong in, and the states that the command went through.

    Attributes:
        states: before the command, and at each mark that says it was done. tried: images looked at, all different.
        bad: one line for each image on which the next command failed or found what it must not find.
    """

    command: Command
    recording: Recording
    folder: Path
    states: list[State] = field(default_factory=list)
    tried: int = 0
    bad: list[str] = field(default_factory=list)
    seen: set[tuple[bytes, int]] = field(default_factory=set)

    def __post_init__(self) -> None:
        places = enumerate(self.recording.operations)
        self.dones = [place for place, operation in places if operation.kind == "mark"]
        if not self.states:
            # A second command may have found that all was done before the kill; then it may be so, or not, to the end.
            moments = [0, *(place + 1 for place in self.dones or [len(self.recording.operations) - 1])]
            self.states = [self.inspect(self.image(moment, PLAIN["everything"])) for moment in moments]

    def image(self, moment: int, choose: Choice) -> Nodes:
        return disk_at(self.recording.before, self.recording.operations, moment, choose)

    def inspect(self, nodes: Nodes, *, stale: bool = False) -> State:
        clear(self.folder)
        lay_out(nodes, self.folder)
        if stale:
            leave_stale_index(self.folder)
        return self.command.inspect(self.folder)

    def attempt(self, moment: int, choose: Choice, words: str) -> None:
        """Look at one image, unless its like was looked at before."""
        nodes = self.image(moment, choose)
        done = sum(place < moment for place in self.dones)
        key = fingerprint(nodes), done
        if key in self.seen:
            return
        self.seen.add(key)
        self.tried += 1
        try:
            found = self.inspect(nodes, stale=key[0][0] % 4 == 0)
            wrong = None if found in self.states[done : done + 2] else self._which(found)
        except Exception as error:  # whatever stops the next command is a loss
            wrong = f"{type(error).__name__}: {error}"
        if wrong is not None:
            self.bad.append(f"{words}, {done} done, before operation {moment} ({self._next(moment)}): {wrong}")

    def attempt_many(self, limit: int, seed: int = 0) -> None:
        """Two thirds of the images by the plain choices at the telling moments, the rest by chance at any moment."""
        plain = [(moment, name) for moment in self.telling_moments() for name in PLAIN]
        for moment, name in _spread(plain, limit * 2 // 3):
            self.attempt(moment, PLAIN[name], name)
        chance, last = random.Random(seed), len(self.recording.operations)
        for _ in range(4 * limit):
            if self.tried >= limit:
                break
            draw = chance.randrange(1 << 32)
            once = random.Random(draw)
            self.attempt(once.randint(1, last), by_chance(once), f"by chance ({draw})")

    def telling_moments(self) -> list[int]:
        """The end, just after each mark, and just before each sync and each change of a folder."""
        operations = self.recording.operations
        changes = [place for place, operation in enumerate(operations) if operation.kind in ("sync", "names") and place]
        return [len(operations), *(place + 1 for place in self.dones), *changes]

    def _which(self, found: State) -> str:
        return f"as after {self.states.index(found)} done" if found in self.states else "a state that never was"

    def _next(self, moment: int) -> str:
        operations = self.recording.operations
        return operations[moment].text if moment < len(operations) else "the end"


def _spread(items: list[tuple[int, str]], count: int) -> list[tuple[int, str]]:
    return items if len(items) <= count else [items[number * len(items) // count] for number in range(count)]


def cuts_of(name: str, folder: Path) -> Cuts:
    """Prepare the world of a command in `folder`, run it once under the recorder, and check the recording."""
    command = (COMMANDS | NAIVE)[name]
    clear(folder)
    command.prepare(folder)
    return Cuts(command, checked(record(_script(name, folder), folder, _environment()), folder), folder)


def cuts_of_program(arguments: Sequence[str], command: Command, folder: Path) -> Cuts:
    """The same for a run of malmen itself: done is what it has done when it ends."""
    clear(folder)
    command.prepare(folder)
    program = [sys.executable, "-m", "malmen_cli", *arguments, "--workspace", str(folder / ".malmen")]
    recording = checked(record(program, folder, _environment()), folder)
    recording.operations.append(Operation("mark", text="done"))
    return Cuts(command, recording, folder)


def cuts_after_kill(first: Cuts, moment: int, again: str, command: Command) -> Cuts:
    """A kill, which loses nothing that was written, before operation `moment`; then another command; then the cuts.

    What the killed command had not synced is not synced still, whatever the second one finds. `command` inspects.
    """
    nodes = first.image(moment, PLAIN["everything"])
    clear(first.folder)
    lay_out(nodes, first.folder)
    second = record(_script(again, first.folder), first.folder, _environment(), nodes)
    begun = first.recording.operations[:moment]
    recording = Recording(second.before | first.recording.before, [*begun, *second.operations])
    return Cuts(command, checked(recording, first.folder), first.folder)


def checked(recording: Recording, folder: Path) -> Recording:
    """The recording, which done over again must give the very files that the command left."""
    again = disk_at(recording.before, recording.operations, len(recording.operations), PLAIN["everything"])
    if fingerprint(again) != fingerprint(scan(folder)):
        raise AssertionError("the recording does not give what the command left")
    return recording


def _script(name: str, folder: Path) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("recorded_commands.py")), name, str(folder)]


def _environment() -> dict[str, str]:
    paths = [str(Path(malmen_cli.__file__).parents[1]), *sys.path]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALMEN_")}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
