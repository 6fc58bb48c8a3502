"""`malmen eval` of several numbers of facts, methods or draws: the scores against the number of facts, as a report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

from malmen_cli.cli.options import command_line
from malmen_cli.cli.output import print_json, print_table, say
from malmen_cli.errors import MalmenError, UsageError
from malmen_cli.facts import FactSet, printable

if TYPE_CHECKING:
    from malmen_cli.evaluation.comparison import Comparison, Point
    from malmen_cli.evaluation.report_tables import Cell
    from malmen_cli.ledger import Ledger, ModelRecord
    from malmen_cli.operations.evaluated import EvaluationOptions
    from malmen_cli.operations.method_editors import MethodRequest


_NUMBERS = re.compile(r" *[0-9]{1,18} *(, *[0-9]{1,18} *)*")


def numbers(text: str, option: str, *, smallest: int) -> list[int]:
    """The numbers of a list such as 16,64,256: ascending, each once.

    Raises:
        UsageError: it is none; `option` is where it was given.
    """
    found = [int(part) for part in text.split(",")] if _NUMBERS.fullmatch(text) else []
    if not found or min(found) < smallest:
        example = "0,1,2" if smallest == 0 else "16,64,256"
        raise UsageError(
            f"{option} takes a number of {smallest} or more, or several, such as {example}: not {printable(text)!r}",
            remedy=f"Give them so: malmen eval FILE {option} {example}",
        )
    return sorted(set(found))


def names(text: str | None, option: str) -> list[str]:
    """The names of a list such as malmen,ultraedit, in its order; none where the option was not given.

    Raises:
        UsageError: it names nothing; `option` is where it was given.
    """
    if text is None:
        return []
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise UsageError(
            f"{option} names nothing: {printable(text)!r}", remedy=f"Give it a name, or leave {option} out."
        )
    return found


def require_report(of_file: bool, failed: Path | None) -> None:
    """Refuse, before anything is read or computed, what a report cannot be made of.

    Raises:
        UsageError: of an entry, with `--failed`, or without matplotlib.
    """
    if not of_file:
        raise UsageError(
            "a report, and several numbers of facts, seeds or editors, are for a fact file, and an entry is none",
            remedy="name a fact file or --split, or leave out the option",
        )
    if failed is not None:
        raise UsageError("--failed is for one number of facts and one editor", remedy="leave it out, or the others")
    from malmen_cli.evaluation.plots import require_plots

    require_plots()


def report_comparison(
    ledger: Ledger,
    model: ModelRecord,
    facts: FactSet,
    editors: Sequence[str],
    methods: Sequence[MethodRequest],
    sizes: Sequence[int],
    seeds: Sequence[int],
    options: EvaluationOptions,
    folder: Path | None,
    *,
    json: bool = False,
    quiet: bool = False,
) -> None:
    """Compare, and write the report as it goes; what is there of it is drawn also where the work is interrupted.

    Args:
        editors, methods: what is compared; with neither the editor that an evaluation takes by itself.
        sizes: none for as many facts as the editor was trained for at once.

    Raises:
        UsageError: the folder is not for this report, or an editor or method cannot be had.
    """
    from malmen_cli.operations.comparison import compare, contenders
    from malmen_cli.operations.places import require_elsewhere
    from malmen_cli.operations.report_folder import ReportFolder, default_folder

    place = default_folder(model.name) if folder is None else ReportFolder(folder)
    if folder is None:  # one that was named has been looked at, before torch was loaded
        require_elsewhere(ledger, place.path)

    def made(point: Point) -> None:
        if not quiet:
            mean = point.scores.harmonic_mean
            score = "-" if mean is None else f"{mean.value:.3f}"
            say(f"{point.contender}, {point.n_edits:,} facts, seed {point.seed}: harmonic mean {score}")

    try:
        chosen = contenders(ledger, model, facts, editors, methods, options)
        comparison = compare(
            ledger, model, facts, chosen, sizes, seeds, options, place, command=command_line(), made=made
        )
    except BaseException:
        if place.latest is not None and place.latest.points:
            with suppress(MalmenError):
                place.draw(place.latest)
                say(f"note: {printable(str(place.path), limit=None)} has the points made so far")
        raise
    from malmen_cli.evaluation.report_pages import warnings_of

    files = place.draw(comparison)
    for note in comparison.notes:
        say(f"note: {note}")
    for warning in warnings_of(comparison):
        say(f"warning: {warning}")
    if json:
        print_json({"report": str(place.path), "files": [path.name for path in files], **_as_json(comparison)})
    elif quiet:
        print(printable(str(files[0]), limit=None))
    else:
        _print(comparison)
        print(f"\nReport: {printable(str(files[0]), limit=None)}")


def _as_json(comparison: Comparison) -> dict[str, object]:
    found: dict[str, object] = comparison.model_dump(mode="json", by_alias=True)
    return found


def _print(comparison: Comparison) -> None:
    from malmen_cli.evaluation.report_pages import title
    from malmen_cli.evaluation.report_tables import intervals, score_table

    table = score_table(comparison)
    print(f"{title(comparison)}, edited in memory from the base\n")
    rows = [[*map(_shown, row[:-1]), f"{_shown(row[-1])}  {row[-1].interval}"] for row in table.rows]
    print_table(rows, header=[_short(name) for name in table.header])
    print(f"\n{_LEGEND}")
    print(fill(f"Behind it: {intervals(comparison)}", 98, subsequent_indent="  "))


_LEGEND = """\
0 to 1, 1 is best; * is the best of its number of facts
R  reliability: the edited facts are said    t  teacher-forced: share of the target's tokens
G  generalisation: in other words too        g  generated: share of free answers, to their end
L  locality: others as the base has them     HM their harmonic mean"""


def _shown(cell: Cell) -> str:
    return cell.text + ("*" if cell.best else "")


def _short(name: str) -> str:
    subject, comma, way = name.partition(", ")
    return f"{subject[0]} {way[0].replace('f', 't')}" if comma else {"Harmonic mean": "HM"}.get(name, name.lower())
