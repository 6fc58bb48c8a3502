"""How the check of an edited model is shown: a sample of answers, ES / GS / LS, and the facts that are still wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from malmen_cli.cli.output import percent, plural, print_table, said
from malmen_cli.facts import printable

if TYPE_CHECKING:
    from malmen_cli.operations.checking import Check

SHOWN_WRONG = 10
"""Facts that are still wrong and are listed; `--json` has all that the entry names."""

WIDTH = 44
"""Most characters of one text in a table."""


def print_check(check: Check, asked: str = "new") -> None:
    """The tables of one check, on stdout; `asked`: what the facts are called that it asked first."""
    if check.answers:
        print_table(
            [
                (printable(a.prompt, WIDTH), printable(a.target, WIDTH), said(a.before, WIDTH), said(a.after, WIDTH))
                for a in check.answers
            ],
            header=("prompt", "target", "before", "after"),
        )
        print()
    rows = [
        (when, *map(percent, (scores.edit_success, scores.generalization, scores.locality)))
        for when, scores in (("before", check.before), ("after", check.after))
    ]
    print_table(rows, header=("these facts", "ES", "GS", "LS"))
    if check.checked_old:
        print(f"{plural(check.checked_old, 'earlier fact')} asked again: ES {percent(check.old_success)}")
    if check.wrong:
        print(f"\nstill wrong: {plural(check.still_wrong, 'fact')}")
        print_table(
            [
                (
                    asked if wrong.new else "earlier",
                    printable(wrong.prompt, WIDTH),
                    printable(wrong.target, WIDTH),
                    said(wrong.answer, WIDTH),
                )
                for wrong in check.wrong[:SHOWN_WRONG]
            ],
            header=("", "prompt", "target", "answer"),
        )
        if check.still_wrong > SHOWN_WRONG:
            named = "" if len(check.wrong) == check.still_wrong else f" names {len(check.wrong):,}"
            print(f"... and {check.still_wrong - SHOWN_WRONG:,} more (--json{named})")
