"""An edit of some facts alone, from the base and in memory: what evaluations ask. Nothing is written or kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from malmen_cli.config import Dtype, RunSettings
from malmen_cli.facts import Fact
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.ledger import Ledger, ModelRecord, check_editor
from malmen_cli.ledger.row_files import RowTable
from malmen_cli.methods.per_fact import RowEditor
from malmen_cli.methods.set_method import SetMethod
from malmen_cli.operations.active import Chosen
from malmen_cli.operations.editors import load_editor, settings_of
from malmen_cli.operations.layers import TensorLayer, layers_of
from malmen_cli.operations.memory import job_for, needs_for, place_model
from malmen_cli.operations.models import load_base
from malmen_cli.operations.rows import RowReader, capture_rows
from malmen_cli.operations.solving import Solved, solve_active, solved_from_shifts
from malmen_cli.operations.workbench import Progress, silent


def edit_in_memory(
    ledger: Ledger,
    model: ModelRecord,
    editor: RowEditor | SetMethod,
    layers: Sequence[TensorLayer],
    language_model: LanguageModel,
    facts: Sequence[Fact],
    *,
    batch_tokens: int | None,
    progress: Progress = silent,
) -> Solved:
    """W0 + S of these facts, whatever is in force. Rows are captured anew: the outcome owes nothing to the ledger.

    Args:
        language_model: at its base weights, before and after, with `layers` as its edited ones.

    Raises:
        UsageError: a fact that the method cannot edit. NumericalFailure: no finite edit.
    """
    if isinstance(editor, SetMethod):
        editor.check(language_model, facts)
        ordered = sorted(facts, key=lambda fact: fact.edit_digest)
        shifts = editor.shifts(language_model, ordered, progress=progress)
        return solved_from_shifts(ledger, model, layers, shifts, {}, len(facts))
    fresh = capture_rows(
        language_model,
        editor,
        facts,
        batch_tokens=batch_tokens,
        progress=lambda done, total: progress("capturing rows", done, total),
    )
    try:
        edits = sorted(fact.edit_digest for fact in facts)
        tables = {rows.layer: RowTable(edits) for rows in fresh}
        for rows in fresh:
            tables[rows.layer].note_pack(rows.data.digest, rows.spans)
        read = RowReader(ledger.objects, fresh)
        return solve_active(ledger, model, editor, layers, tables.__getitem__, read, {}, language_model.device)
    finally:
        for rows in fresh:
            rows.data.discard()


@dataclass(frozen=True)
class Opened:
    """An editor ready for use in memory, with the language model at its base weights.

    Attributes:
        settings: its own, but for the dtype that was asked for. layers: those that it edits.
    """

    chosen: Chosen
    settings: RunSettings
    editor: RowEditor | SetMethod
    layers: list[TensorLayer]
    language_model: LanguageModel


def open_editor(
    ledger: Ledger,
    model: ModelRecord,
    chosen: Chosen,
    facts: int,
    *,
    device: str = "cpu",
    batch_tokens: int | None = None,
    dtype: Dtype | None = None,
) -> Opened:
    """Load an editor and the language model that goes with it, for an evaluation of so many facts.

    Raises:
        UnsafeFile: the editor's files are malformed. NoRoom: too little memory is free; nothing was loaded.
    """
    record, made = chosen.record, chosen.made
    settings = settings_of(record, dtype)
    job = job_for("eval", settings, facts, batch_tokens)
    placement = place_model(ledger, model, layers_of(record.config), device, settings, job)
    files = check_editor(ledger, record) if made is None else made.files
    editor, layers = load_editor(files, model, record, placement.device)
    if made is not None and made.language_model is not None:
        return Opened(chosen, settings, editor, layers, made.language_model)
    job = job_for("eval", settings, facts, batch_tokens, editor)
    needs = needs_for(model, layers, settings, job)
    return Opened(chosen, settings, editor, layers, load_base(ledger, model, layers, placement, settings, needs))
