"""How gates are read from the command line, and how what came of them is shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malmen_cli.cli.output import plural, print_table, say, tell
from malmen_cli.errors import UsageError
from malmen_cli.evaluation.gates import Gates, parse_gates
from malmen_cli.facts import printable, read_prompts

if TYPE_CHECKING:
    from malmen_cli.evaluation.verdicts import Shortfall, Verdicts

_GROUPS = {"new": "new facts", "old": "earlier facts", "protected": "protected prompts"}


def read_gates(require: Sequence[str] | None, protect: Sequence[Path] | None, facts: Path | None) -> Gates | None:
    """The gates that `--require` and `--protect` ask for, each given once or more; None without either.

    Args:
        facts: FILE, which may be standard input as well.

    Raises:
        UsageError: a bad expression, no such file, or one standard input for both. BadFacts: with every bad line.
    """
    gates = parse_gates(",".join(require)) if require else ()
    files = list(protect or ())
    if [str(path) for path in [*files, facts]].count("-") > 1:
        raise UsageError("standard input can be read once", remedy="Name a file for the facts or for --protect.")
    prompts = read_prompts("-" if str(path) == "-" else path for path in files) if files else None
    return Gates.of(gates, prompts)


def print_gates(said: Mapping[str, Any]) -> None:
    """A table of the gates with their figures, as `Verdicts.as_dict` has them or the ledger keeps them."""
    rows = []
    for gate in said["gates"]:
        figures = gate["figures"] or {"old": {"asked": 0, "value": None, "holds": True}}
        for group in (group for group in _GROUPS if group in figures):
            figure = figures[group]
            value = "-" if figure["value"] is None else f"{figure['value']:.4f}"
            outcome = "holds" if figure["holds"] else "fails"
            left_out = f"{figure.get('left_out', 0):,}"
            rows.append([gate["gate"], _GROUPS[group], f"{figure['asked']:,}", left_out, value, outcome])
    header = ["gates", "of", "asked", "left out", "figure", ""]
    if all(row[3] == "0" for row in rows):
        for row in [header, *rows]:
            del row[3]
    print_table(rows, header=header)
    protected = said.get("protected")
    if protected:
        tell(f"protected: {plural(protected['prompts'], 'prompt')} of {protected['source']}")


def say_failures(verdicts: Verdicts) -> None:
    """Which gates fail, by how much, and where the model does worst; on stderr."""
    for verdict in verdicts.failed:
        for group in verdict.failed:
            figure = verdict.figures[group]
            say(verdict.words(group))
            for line in _lines(figure.worst):
                say(f"  {line}")


def _lines(worst: Sequence[Shortfall]) -> Iterator[str]:
    for found in worst:
        said, wanted = (printable(text, 40) for text in (found.said, found.wanted))
        of = ""
        if found.fact is not None and found.fact != found.prompt:
            of = f" (of the fact '{printable(found.fact, 50)}')"
        elif found.kind is None and found.fact is not None:
            of = " (an active fact's own prompt)"
        yield f"'{printable(found.prompt)}' gets '{said}', not '{wanted}'{of}"
