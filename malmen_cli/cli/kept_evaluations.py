"""Evaluations that the ledger keeps, as `malmen eval --list` and `--show` print them. Loads no torch."""

from __future__ import annotations

import sqlite3
from typing import Any

from malmen_cli.cli.output import percent, print_fields, print_json, print_table, said, say
from malmen_cli.facts import printable
from malmen_cli.ledger import store
from malmen_cli.ledger.evaluations import Evaluation, evaluation_named, evaluations, results_of
from malmen_cli.operations.models import find_model


def print_list(db: sqlite3.Connection, model: str | None, *, json: bool, quiet: bool) -> None:
    """Evaluations of one model or of all, newest first."""
    found = evaluations(db, None if model is None else find_model(db, model).id)
    names = {record.id: record.name for record in store.models(db)}
    if json:
        print_json([as_json(evaluation, names.get(evaluation.model_id, "-")) for evaluation in found])
    elif quiet:
        for evaluation in found:
            print(evaluation.id)
    elif not found:
        say("There are no evaluations yet.")
    else:
        rows = [
            (
                evaluation.short,
                evaluation.created_at[:16].replace("T", " "),
                names.get(evaluation.model_id, "-"),
                _by(evaluation),
                printable(_what(evaluation), 30) + _how(evaluation),
                f"{evaluation.facts:,}",
                *_summary(evaluation),
            )
            for evaluation in found
        ]
        header = ("id", "when (UTC)", "model", "editor", "of", "facts", "ES", "GS", "unchanged", "mean")
        print_table(rows, header=header)


def print_one(db: sqlite3.Connection, name: str, *, json: bool, quiet: bool) -> None:
    """One evaluation, with what each fact's prompts were answered."""
    evaluation = evaluation_named(db, name)
    model = store.model_with_id(db, evaluation.model_id).name
    results = results_of(db, evaluation)
    if json:
        print_json({**as_json(evaluation, model), "facts": results})
        return
    if quiet:
        print(evaluation.id)
        return
    print_fields(
        [
            ("evaluation", evaluation.id),
            ("model", model),
            ("editor", _by(evaluation)),
            ("of", _what(evaluation) + _how(evaluation)),
            ("when", evaluation.created_at),
            ("command", evaluation.command),
            *zip(("ES", "GS", "unchanged", "harmonic mean"), _summary(evaluation), strict=True),
        ]
    )
    print()
    print_table(map(_fact_row, results), header=("fact", "prompt", "target", "edited", "accuracy"))


def as_json(evaluation: Evaluation, model: str) -> dict[str, Any]:
    return {
        "id": evaluation.id,
        "short": evaluation.short,
        "model": model,
        "entry": evaluation.entry_id,
        "editor": evaluation.editor_id,
        "source": evaluation.source,
        "facts_digest": evaluation.facts_digest,
        "scored": evaluation.facts,
        "created_at": evaluation.created_at,
        "command": evaluation.command,
        "details": evaluation.details,
    }


def _what(evaluation: Evaluation) -> str:
    return f"entry {evaluation.entry_id[7:17]}" if evaluation.entry_id is not None else evaluation.source or "-"


def _how(evaluation: Evaluation) -> str:
    """With what its facts were drawn, and what the model computed in where that was asked for."""
    asked = evaluation.details.get("scores")
    seed, dtype = (asked.get("seed"), asked.get("dtype")) if isinstance(asked, dict) else (None, None)
    drawn = f", seed {seed}" if isinstance(seed, int) else ""
    return drawn + (f", {printable(dtype, 10)}" if isinstance(dtype, str) else "")


def _by(evaluation: Evaluation) -> str:
    """The editor, or the method where the editor was made for this evaluation and kept nowhere."""
    if evaluation.editor_id is not None:
        return evaluation.editor_id[:10]
    scores = evaluation.details.get("scores")
    method = scores.get("method") if isinstance(scores, dict) else None
    return method if isinstance(method, str) else "-"


def _summary(evaluation: Evaluation) -> list[str]:
    """ES, GS, what is unchanged and the harmonic mean; teacher-forced / generated."""
    found = []
    for subject in ("reliability", "generalisation", "locality"):
        values = [_number(evaluation, subject, way) for way in ("teacher_forced", "generated")]
        found.append(" / ".join(map(percent, values)))
    return [*found, percent(_number(evaluation, "harmonic_mean"))]


def _number(evaluation: Evaluation, *path: str) -> float | None:
    value: Any = evaluation.details
    for name in ("scores", "six_scores", *path, "value"):
        value = value.get(name) if isinstance(value, dict) else None
    return _figure(value)


def _figure(value: object) -> float | None:
    """A score as it was kept; None of what is none, since a ledger may be a stranger's."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        return None
    return float(value)


def _fact_row(result: dict[str, Any]) -> list[str]:
    edit = result.get("edit")
    after = edit.get("after") if isinstance(edit, dict) else None
    after = after if isinstance(after, dict) else {}
    free = after.get("generated")
    accuracy = after.get("accuracy")
    return [
        printable(str(result.get("number", "-")), 6),
        printable(str(result.get("prompt", "-")), 44),
        printable(str(result.get("target", "-")), 24),
        said(str(after.get("answer", "-") if free is None else free), 28),
        percent(_figure(accuracy)),
    ]
