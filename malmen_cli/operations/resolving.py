"""Solving stored rows again, for reverts that lead to a state that never was: no language model is needed."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from malmen_cli.checkpoint.patch import TensorChange
from malmen_cli.errors import UsageError
from malmen_cli.ledger import FactRef, Ledger, ModelRecord, ParameterDelta, check_editor, store
from malmen_cli.operations.active import edit_digests
from malmen_cli.operations.editors import load_editor
from malmen_cli.operations.models import pick_device
from malmen_cli.operations.rows import RowReader
from malmen_cli.operations.solving import solve_active


def solve_again(
    ledger: Ledger, model: ModelRecord, editor_id: str, active: Mapping[str, FactRef], device: str
) -> tuple[list[TensorChange], list[ParameterDelta], list[str]]:
    """The changes that take the checkpoint to W0 + S(active), from rows that were all captured by this editor before.

    Raises:
        UsageError: some facts were applied by another editor.
    """
    device = pick_device(device)
    with ledger.read() as db:
        record = store.editor(db, editor_id)
        edits = edit_digests(active)
        stored = store.rows_of(db, record.id, edits)
        state = store.state(db, model.id)
    editor, layers = load_editor(check_editor(ledger, record), model, record, device)
    missing = {edit for layer in layers for edit in edits if edit not in stored.get(layer.name, {})}
    if missing:
        raise UsageError(
            f"{len(missing)} of the facts were applied by another editor than {editor_id}, and editors are never mixed",
            remedy="Apply those facts anew with the editor in force.",
        )
    solved = solve_active(
        model,
        editor,
        layers,
        lambda layer: [stored[layer][edit] for edit in edits],
        RowReader(ledger.objects),
        ledger.objects,
        state,
        torch.device(device),
    )
    return solved.changes, solved.deltas, solved.warnings
