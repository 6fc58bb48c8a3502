"""What every verb prints with: data on stdout, everything else on stderr, facts never as markup."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from malmen_cli.errors import ExitCode
from malmen_cli.facts import printable

_MEANINGS = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "failed",
    ExitCode.USAGE: "wrong usage or bad input, nothing was written",
    ExitCode.FACTS_FAILED_CHECK: "done, but some facts failed the check",
    ExitCode.DIFFERS: "differs",
    ExitCode.NO_WORKSPACE: "no workspace",
    ExitCode.LOCKED: "another process is writing to the checkpoint",
    ExitCode.VERIFICATION_FAILED: "verification failed",
    ExitCode.WRONG_BASE: "the checkpoint or editor is not the one the ledger knows",
    ExitCode.REFUSED_BY_GATE: "refused by a gate",
    ExitCode.INTERRUPTED: "interrupted",
}


def epilog(*codes: ExitCode) -> str:
    """The exit statuses of a verb, as its help ends with them."""
    return "\b\nExit status:\n" + "\n".join(f"  {code.value:>3}  {_MEANINGS[code]}" for code in codes)


def say(text: str) -> None:
    """A line for people, on stderr."""
    with suppress(BrokenPipeError):  # nobody listening is no reason to stop working
        print(printable(text, limit=None), file=sys.stderr)


def complain(message: str, remedy: str | None) -> None:
    """An error in words, with what to do about it."""
    say(f"malmen: {message}")
    if remedy:
        say(f"  {remedy[0].upper()}{remedy[1:]}{'' if remedy.endswith(('.', '?')) else '.'}")


def print_json(value: Any) -> None:
    """Machine-readable data on stdout. The schema only ever grows."""
    print(json.dumps(value, indent=2))  # ASCII: control and direction marks of a fact stay escaped


def print_table(rows: Iterable[Sequence[str]], *, header: Sequence[str] | None = None) -> None:
    """Left-aligned columns, as wide as they need to be, on stdout."""
    table = [*([header] if header else []), *rows]
    lines = [[printable(cell, limit=None) for cell in row] for row in table]
    if not lines:
        return
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def percent(value: float | None) -> str:
    """A score as people read it; `-` where there was nothing to ask."""
    return "-" if value is None else f"{value:.3f}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
