"""Settling on request what a killed command left half done, saying whether the checkpoint is as it should be, and
putting edited layers back where something else has changed them, or the ledger's own copy of them where that is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from malmen_cli.checkpoint.durable import fsync_folder, remove_leftovers
from malmen_cli.checkpoint.manifest import check_checkpoint, listed, other_differences, tensor_digests
from malmen_cli.checkpoint.patch import TensorChange, write_changes
from malmen_cli.checkpoint.safetensors_file import read_tensor
from malmen_cli.errors import MalmenError, WrongBase
from malmen_cli.ledger import store
from malmen_cli.ledger.database import Ledger
from malmen_cli.ledger.records import ModelRecord
from malmen_cli.ledger.sidecar import SIDECAR, edited_by_another, refresh_sidecar
from malmen_cli.ledger.space import require_room
from malmen_cli.ledger.transactions import Settlement, held_checkpoint, is_edited, settle


@dataclass(frozen=True, slots=True)
class Recovery:
    """What became of one model.

    Attributes:
        settlement: of an interrupted entry; None where there was none. leftovers: temporary files removed.
        restored: tensors that were put back. kept: tensors whose bytes the ledger had lost, and keeps again.
        differences: in words, between the checkpoint and the ledger's head afterwards. error: why it was not settled.
    """

    model: ModelRecord
    settlement: Settlement | None = None
    leftovers: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    error: MalmenError | None = None


def recover(ledger: Ledger, model: ModelRecord, command: str, timeout: float = 0, *, restore: bool = False) -> Recovery:
    """Settle a model under its checkpoint's lock, waiting at most `timeout` seconds for it.

    Never raises for a model that cannot be settled: one in trouble must not keep the others from their settlement.

    Args:
        restore: write the ledger's bytes over tensors that something else has changed, where that makes the checkpoint
            what the head says; else nothing. Then keep again what the ledger has lost of these bytes. An interrupted
            entry whose new bytes are lost is taken back.
    """
    try:
        with held_checkpoint(ledger, model, command, timeout):
            leftovers = remove_leftovers(model.path)
            restored: list[str] = []
            looked = False
            try:
                settlement = settle(ledger, model, take_back=restore)
            except WrongBase:
                if not restore:
                    raise
                # Bytes that an interrupted entry does not know: it starts again from those before it.
                restored = _restore(ledger, model)
                settlement = settle(ledger, model, take_back=restore)
            if restore and not restored:
                restored = _restore(ledger, model)
                looked = not restored  # what was looked through, and nothing put back, is as the head says
            with ledger.read() as db:
                state = store.state(db, model.id)
            differences = [] if looked else check_checkpoint(model.path, model.manifest, state)
            kept = _keep_again(ledger, model, state) if restore and not differences else []
            return Recovery(model, settlement, leftovers, restored, kept, differences)
    except MalmenError as error:
        return Recovery(model, error=error)
    except OSError as error:
        message = f"{error.filename or model.path} cannot be read: {error.strerror or error}"
        remedy = "check the disk and the folder's permissions, then run malmen recover again"
        return Recovery(model, error=MalmenError(message, remedy=remedy))


def _restore(ledger: Ledger, model: ModelRecord) -> list[str]:
    """Put back every tensor that is neither as the head says nor as an interrupted entry leaves it: their names.

    Raises WrongBase where that would not be enough, or another ledger has edited the checkpoint since.
    """
    with ledger.read() as db:
        state = store.state(db, model.id)
        pending = store.pending_entry(db, model.id)
        deltas = [] if pending is None else store.deltas_of(db, pending.id)
    manifest = model.manifest
    found, others = tensor_digests(model.path, manifest)
    others += other_differences(model.path, manifest)
    wanted = {name: state.get(name, record.digest) for name, record in manifest.tensors.items()}
    wanted |= {delta.tensor: delta.after for delta in deltas if found.get(delta.tensor) == delta.after}
    changed = [name for name, digest in found.items() if digest != wanted[name]]
    lost = [name for name in changed if not ledger.objects.contains(wanted[name])]
    others += [f"tensor {name} in {manifest.tensors[name].file}, whose bytes are not kept" for name in lost]
    if others:
        raise WrongBase(
            f"{model.path} cannot be restored: other things than edited layers differ: {listed(others)}",
            remedy="put the model's own files back from a copy, then run malmen recover --restore",
        )
    if changed and (stranger := edited_by_another(ledger, model.path)) is not None:
        raise WrongBase(
            f"{model.path} was edited by the malmen workspace {stranger} since, whose edits would be lost",
            remedy=f"take them back first (malmen log --workspace {stranger}), or, if that workspace is gone, remove "
            f"{model.path / SIDECAR}",
        )
    if changed:
        require_room(ledger, model, changed=changed)
        changes = [TensorChange(name, found[name], wanted[name], ledger.objects.get(wanted[name])) for name in changed]
        refresh_sidecar(ledger, model, edited=is_edited(model, wanted))
        write_changes(model.path, manifest, changes)
        fsync_folder(model.path)
    return changed


def _keep_again(ledger: Ledger, model: ModelRecord, state: Mapping[str, str]) -> list[str]:
    """Store the bytes of tensors whose objects are lost or damaged, from a checkpoint that is as the head says.

    Solving needs those of the base, reverting to this state later the edited ones. Returns the tensors' names.
    """
    with ledger.read() as db:
        base = store.base_tensors(db, model.id)
    digests = {name: model.manifest.tensors[name].digest for name in base} | dict(state)
    lost = [name for name, digest in digests.items() if not ledger.objects.is_sound(digest)]
    require_room(ledger, model, changed=(), objects=[model.manifest.slot(name).length for name in lost])
    files = {name: model.path / model.manifest.tensors[name].file for name in lost}
    ledger.objects.put_many(read_tensor(path, model.manifest.slot(name)) for name, path in files.items())
    return lost
