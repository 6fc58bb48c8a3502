"""Settling on request what a killed command left half done, saying whether the checkpoint is as it should be, and
putting edited layers back where something else has changed them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from malmen_cli.checkpoint.durable import fsync_folder, remove_leftovers
from malmen_cli.checkpoint.manifest import check_checkpoint, listed, other_differences, tensor_digests
from malmen_cli.checkpoint.patch import TensorChange, write_changes
from malmen_cli.errors import MalmenError, WrongBase
from malmen_cli.ledger import store
from malmen_cli.ledger.database import Ledger
from malmen_cli.ledger.records import ModelRecord
from malmen_cli.ledger.sidecar import refresh_sidecar
from malmen_cli.ledger.space import require_room
from malmen_cli.ledger.transactions import Settlement, held_checkpoint, is_edited, settle


@dataclass(frozen=True, slots=True)
class Recovery:
    """What became of one model.

    Attributes:
        settlement: of an interrupted entry; None where there was none. leftovers: temporary files removed.
        restored: tensors that were put back. differences: in words, between the checkpoint and the ledger's head
            afterwards. error: why it was not settled.
    """

    model: ModelRecord
    settlement: Settlement | None = None
    leftovers: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    error: MalmenError | None = None


def recover(ledger: Ledger, model: ModelRecord, command: str, timeout: float = 0, *, restore: bool = False) -> Recovery:
    """Settle a model under its checkpoint's lock, waiting at most `timeout` seconds for it.

    Never raises for a model that cannot be settled: one in trouble must not keep the others from their settlement.

    Args:
        restore: write the ledger's bytes over tensors that something else has changed, where that makes the checkpoint
            what the head says; else nothing.
    """
    try:
        with held_checkpoint(ledger, model, command, timeout):
            leftovers = remove_leftovers(model.path)
            settlement = settle(ledger, model)
            with ledger.read() as db:
                state = store.state(db, model.id)
            restored = _restore(ledger, model, state) if restore else []
            # What was looked through, and nothing put back, is as the head says.
            looked = restore and not restored
            differences = [] if looked else check_checkpoint(model.path, model.manifest, state)
            return Recovery(model, settlement, leftovers, restored, differences)
    except MalmenError as error:
        return Recovery(model, error=error)


def _restore(ledger: Ledger, model: ModelRecord, state: Mapping[str, str]) -> list[str]:
    """Put back every tensor that is not as the head says: its name. Raises WrongBase where that would not be enough."""
    manifest = model.manifest
    found, others = tensor_digests(model.path, manifest)
    others += other_differences(model.path, manifest)
    wanted = {name: state.get(name, record.digest) for name, record in manifest.tensors.items()}
    changed = [name for name, digest in found.items() if digest != wanted[name]]
    lost = [name for name in changed if not ledger.objects.contains(wanted[name])]
    others += [f"tensor {name} in {manifest.tensors[name].file}, whose bytes are not kept" for name in lost]
    if others:
        raise WrongBase(
            f"{model.path} cannot be restored: other things than edited layers differ: {listed(others)}",
            remedy="put the model's own files back from a copy, then run malmen recover --restore",
        )
    if changed:
        require_room(ledger, model, changed=changed)
        changes = [TensorChange(name, found[name], wanted[name], ledger.objects.get(wanted[name])) for name in changed]
        refresh_sidecar(ledger, model, edited=is_edited(model, state))
        write_changes(model.path, manifest, changes)
        fsync_folder(model.path)
    return changed
