"""What is refused, as data: how the world is prepared, which commands meet it, how they must end, and what they say."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from refusal_world import RefusalWorld, differing_bytes, picture, run_program

from malmen_cli.errors import ExitCode

Prepare = Callable[[RefusalWorld], None]

CHECKPOINT = (
    "apply",
    "apply --plan",
    "apply --output",
    "apply --dry-run",
    "revert HEAD",
    "revert HEAD~1",
    "revert --fact",
    "rebase",
    "train",
    "train --resume",
    "export",
    "plan",
    "eval",
    "recover",
)
"""Commands that read the registered checkpoint's weights or write them."""

WRITING = (
    "apply",
    "apply --plan",
    "revert HEAD",
    "revert HEAD~1",
    "revert --fact",
    "rebase",
    "train",
    "train --resume",
)
"""Commands that take the registered checkpoint's lock and settle it."""


@dataclass(frozen=True)
class Case:
    """One thing that must be refused.

    Attributes:
        name: in words. prepare: makes it so. commands: that meet it. code: how they end. words: a regular expression
            that their output must match. codes, said: where a command's differ.
    """

    name: str
    prepare: Prepare
    commands: Sequence[str]
    code: ExitCode
    words: str
    codes: Mapping[str, ExitCode] = field(default_factory=dict)
    said: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


@dataclass
class Tally:
    """What a group of cases came to."""

    cases: int = 0
    commands: int = 0
    refused: int = 0
    bytes_written: int = 0


def try_case(
    case: Case, world: RefusalWorld, tally: Tally, capfd: pytest.CaptureFixture[str], *, full: bool, turn: int
) -> None:
    """Run a case's commands, in a hurry one of them and another for the next case, and count how they ended."""
    commands = list(case.commands) if full else [case.commands[turn % len(case.commands)]]
    world.restore()
    case.prepare(world)
    before = picture(world.home)
    tally.cases += 1
    bad = []
    for command in commands:
        tally.commands += 1
        capfd.readouterr()
        status = run_program(world.arguments(command))
        out, err = capfd.readouterr()
        problems = problems_of(case, command, status, out, err)
        after = picture(world.home)
        names, size = differing_bytes(before, after)
        tally.bytes_written += size
        tally.refused += not problems
        problems += [f"changed: {', '.join(names[:8])}"] * bool(names)
        bad += [f"{command}: {'; '.join(problems)}\n{(err + out)[:600]}"] * bool(problems)
        if names:
            world.restore()
            case.prepare(world)
            before = picture(world.home)
    assert not bad, "\n".join(bad)


def problems_of(case: Case, command: str, status: int, out: str, err: str) -> list[str]:
    """What is wrong with how a command ended: not as expected, without the words, or without a remedy."""
    problems = []
    expected = case.codes.get(command, case.code)
    if status != expected:
        problems.append(f"it ended with {status}, expected {expected.value}")
    words = case.said.get(command, case.words)
    if not re.search(words, out + err):
        problems.append(f"it does not say {words!r}")
    if "Traceback" in err or "unexpected error" in err:
        problems.append("it says nothing that a user could act on")
    if not re.search(r"^malmen: .+\n  \S.+\.$", err, re.MULTILINE) and command != "recover":
        problems.append("it offers no remedy")
    return problems
