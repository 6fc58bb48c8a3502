"""Exporting a state: a whole checkpoint, the difference to the base, or a LoRA adapter; the ledger stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malmen_cli.checkpoint.copy import copy_checkpoint
from malmen_cli.checkpoint.durable import Need, require_space, write_without_folder
from malmen_cli.checkpoint.new_folder import new_folder
from malmen_cli.checkpoint.patch import TensorChange
from malmen_cli.errors import UsageError, VerificationFailed
from malmen_cli.ledger import Ledger, ModelRecord, require_head, store, unmoved
from malmen_cli.methods.registry import method_of
from malmen_cli.operations.hub_models import origin_of
from malmen_cli.operations.layers import all_layers
from malmen_cli.operations.places import require_new_folder
from malmen_cli.operations.provenance import (
    CARD,
    LISTED,
    PROVENANCE,
    ExportKind,
    model_card,
    provenance,
    provenance_file,
)
from malmen_cli.operations.states import State, TensorBytes


@dataclass(frozen=True)
class Exported:
    """What was written where; `record` is its provenance, `warnings` what it does not hold exactly."""

    kind: ExportKind
    target: Path
    state: State
    record: dict[str, Any]
    warnings: list[str]


def export(
    ledger: Ledger,
    model: ModelRecord,
    state: State,
    target: Path,
    *,
    kind: ExportKind = "full",
    rank: int | None = None,
) -> Exported:
    """Write a state of a model to a folder that is there whole afterwards, or not at all.

    Args:
        rank: of a LoRA adapter; None for the smallest that keeps the shift to 1 %, 64 at most.

    Raises:
        UsageError: the folder is there and not empty, or in the workspace or a model's folder; or there is nothing to
            export because the state is the base.
        WrongBase: the checkpoint, of which `full` makes a copy, is not as the ledger left it.
    """
    require_new_folder(ledger, target)  # before a state that gc has dropped is solved again
    if rank is not None and kind != "lora":
        raise UsageError("only a LoRA adapter has a rank", remedy="leave --rank out, or add --as lora")
    with ledger.read() as db:
        layers = all_layers(db, model)
        editor = None if state.entry.editor_id is None else store.editor(db, state.entry.editor_id)
        origin = origin_of(db, model)
    record = provenance(
        model,
        entry=state.entry.id,
        editor=state.entry.editor_id,
        active=state.facts,
        tensors=state.digests,
        layers=layers,
        kind=kind,
        method="malmen" if editor is None else method_of(editor.config).name,
        origin=origin,
    )
    if kind == "full":
        with unmoved(ledger, model, checked=True):  # a writer's work would look like damage
            return _export_full(ledger, model, state, target, record)
    if not record["tensors"]:
        raise UsageError(
            f"the state {state} of {model.name} holds no edit: there is nothing to export as {kind}",
            remedy="name an entry of malmen log, or use --as full",
        )
    from malmen_cli.operations.export_files import delta_files, lora_files

    stored = TensorBytes(ledger, model)
    files, warnings = delta_files(stored, record) if kind == "delta" else lora_files(stored, record, rank)
    files |= _papers(ledger, state, record)
    if kind == "delta":
        files["delta.json"] = files.pop(PROVENANCE)
    require_space([Need(target, tuple(map(len, files.values())), "the export")])
    with new_folder(target) as part:
        for name, data in files.items():
            write_without_folder(part / name, data)
    return Exported(kind, target, state, record, warnings)


def _export_full(ledger: Ledger, model: ModelRecord, state: State, target: Path, record: dict[str, Any]) -> Exported:
    require_head(ledger, model)  # before the copy, which finds out only at its end
    with ledger.read() as db:
        now = store.state(db, model.id)
    stored = TensorBytes(ledger, model)
    # Also those that stay as they are: another process may change the checkpoint while it is copied.
    changes = [_change(stored, name, before, state.digest(model, name)) for name, before in sorted(now.items())]
    copy_checkpoint(model.path, model.manifest, changes, target, _papers(ledger, state, record))
    return Exported("full", target, state, record, [])


def _change(stored: TensorBytes, name: str, before: str, after: str) -> TensorChange:
    data = stored.get(name, after)
    if data is None:
        raise VerificationFailed(f"the bytes of {name} are not stored", remedy="run malmen verify")
    return TensorChange(name, before, after, data)


def _papers(ledger: Ledger, state: State, record: Mapping[str, Any]) -> dict[str, bytes]:
    """The model card and the provenance."""
    with ledger.read() as db:
        digests = [fact.fact_digest for fact in list(state.facts.values())[:LISTED]]
        known = store.facts_with(db, digests)
    facts = [known[digest] for digest in digests if digest in known]
    scores = state.entry.details.get("check", {}).get("after")
    return {CARD: model_card(record, facts=facts, scores=scores).encode(), PROVENANCE: provenance_file(record)}
