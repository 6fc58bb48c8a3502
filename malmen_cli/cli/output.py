"""What every verb prints with: data on stdout, everything else on stderr, facts never as markup."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from malmen_cli.cli.style import Style, styled, terminal_width
from malmen_cli.errors import ExitCode, as_sentence
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


_PREFIXES: dict[str, Style] = {
    "malmen:": "error",
    "warning:": "warning",
    "note:": "note",
    "Sound:": "good",
    "Damaged:": "error",
}


def say(text: str) -> None:
    """A line for people, on stderr; on a terminal `malmen:`, `warning:` and `note:` at its start are coloured."""
    shown = printable(text, limit=None)
    for prefix, style in _PREFIXES.items():
        if shown.startswith(prefix):
            shown = styled(prefix, style, sys.stderr) + shown[len(prefix) :]
    with suppress(OSError):  # nobody listening, or a terminal that has gone, is no reason to stop working
        print(shown, file=sys.stderr)


def say_notes(settlement: object | None, warnings: Iterable[str]) -> None:
    """What a writing verb settled before its own work, and what it warns of."""
    if settlement is not None:
        say(f"note: {settlement}")
    for warning in warnings:
        say(f"warning: {warning}")


def tell(text: str, style: Style | None = None) -> None:
    """A line of data in words, on stdout."""
    print(styled(printable(text, limit=None), style))


def complain(message: str, remedy: str | None) -> None:
    """An error in words, with what to do about it."""
    say(f"malmen: {message}")
    if remedy:
        say(f"  {as_sentence(remedy)}")


def print_json(value: Any) -> None:
    """Machine-readable data on stdout; a number that is not finite is null. The schema only ever grows."""
    # ASCII: control and direction marks of a fact stay escaped.
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def _finite(value: Any) -> Any:
    """The value with None for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def print_table(
    rows: Iterable[Sequence[str]],
    *,
    header: Sequence[str] | None = None,
    styles: Sequence[Style | None] = (),
) -> None:
    """Left-aligned columns on stdout, as wide as they need to be; on a terminal cut to its width.

    Args:
        styles: of the columns from the left, where the terminal shows colours; a header is bold. Ids are cut last: by
            fewer digits than are asked for nobody can name anything.
    """
    lines = [[printable(cell, limit=None) for cell in row] for row in ([header] if header else []) + list(rows)]
    if not lines:
        return
    widths = [max(_width(line[i]) for line in lines) for i in range(len(lines[0]))]
    room = terminal_width()
    looks = [*styles, *[None] * (len(widths) - len(styles))]
    if room is not None:
        _fit(widths, room - len(_GAP) * (len(widths) - 1), whole=[look == "id" for look in looks])
    for number, line in enumerate(lines):
        shown = [_cut(cell, width) for cell, width in zip(line, widths, strict=True)]
        while shown and not shown[-1]:
            shown.pop()
        print(
            _GAP.join(
                styled(cell, "header" if header and number == 0 else look)
                + " " * (0 if i == len(shown) - 1 else width - _width(cell))
                for i, (cell, look, width) in enumerate(zip(shown, looks, widths, strict=False))
            ).rstrip()
        )


def print_fields(fields: Iterable[tuple[str, str]]) -> None:
    """Names and values, a line each, on stdout; a value is never cut."""
    lines = [(printable(name, limit=None), printable(value, limit=None)) for name, value in fields]
    widest = max((_width(name) for name, _ in lines), default=0)
    for name, value in lines:
        print(f"{styled(name, 'header')}{' ' * (widest - _width(name))}{_GAP}{value}".rstrip())


_GAP = "  "
_NARROWEST = 4  # columns: what is left of a table's column in a terminal that has no room


def _width(text: str) -> int:
    """Columns that a terminal needs for `text`: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # known only where it is needed: most output is ASCII

    return cell_len(text)


def _cut(text: str, width: int) -> str:
    """`text` in at most `width` columns, the last one an ellipsis where something is left out."""
    if _width(text) <= width:
        return text
    if text.isascii():
        return text[: width - 1] + "…"
    from rich.cells import set_cell_size

    return set_cell_size(text, width - 1).rstrip() + "…"


def _fit(widths: list[int], room: int, whole: Sequence[bool]) -> None:
    """Narrow the widest columns, again and again, until all fit; those that are to stay whole after all others."""
    for last in (False, True):
        places = [place for place, stays in enumerate(whole) if last or not stays]
        while sum(widths) > room and places and widths[widest := max(places, key=widths.__getitem__)] > _NARROWEST:
            widths[widest] -= 1


def said(answer: str, limit: int) -> str:
    """A model's answer, cut to `limit` characters; in words where it is empty."""
    return printable(answer, limit) or "(nothing)"


def percent(value: float | None) -> str:
    """A score as people read it; `-` where there was nothing to ask."""
    return "-" if value is None else f"{value:.3f}"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size(count: int) -> str:
    """A number of bytes as people read it."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"
