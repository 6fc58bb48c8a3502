"""Changing a checkpoint and its ledger as one: the write order, and settling what a killed command left half done.

    lock -> settle -> check against the head -> objects (synced) -> row `pending` -> sidecar -> shards patched, renamed,
    read back -> row `applied` -> unlock

Killed before `pending`, nothing has happened but for unreferenced objects and, of rows captured but not yet stored,
temporary files among them: `gc --leftovers` drops both. Killed after it, the tensors' digests say
how far it came, and the objects hold the bytes of each: the next writing command goes forward or back, never halfway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from malmen_cli.checkpoint.digests import canonical_json, digest_file, is_digest, short
from malmen_cli.checkpoint.durable import fsync_folder, fsync_path, remove_leftovers
from malmen_cli.checkpoint.lock import checkpoint_lock, held_in_words, is_locked, require_held
from malmen_cli.checkpoint.manifest import check_checkpoint, listed
from malmen_cli.checkpoint.patch import TensorChange, write_changes
from malmen_cli.checkpoint.safetensors_file import open_regular
from malmen_cli.errors import NOT_OURS, Locked, MalmenError, UnsafeFile, VerificationFailed, WrongBase
from malmen_cli.ledger import store
from malmen_cli.ledger.active_set import EntryFacts, FactRef, active_digest, active_facts
from malmen_cli.ledger.database import Ledger
from malmen_cli.ledger.entry_rows import digest_of, insert_entry, mark_applied, withdraw
from malmen_cli.ledger.objects import LOST
from malmen_cli.ledger.records import Entry, EntryDraft, ModelRecord, ParameterDelta, RowPack
from malmen_cli.ledger.registration import ensure_base_objects
from malmen_cli.ledger.sidecar import check_sidecar, original_of, refresh_sidecar
from malmen_cli.ledger.space import require_room

_BACKUP = "run malmen verify; restore the workspace from a backup"


@dataclass(frozen=True, slots=True)
class Settlement:
    """What became of an entry that a killed command had left pending."""

    entry: Entry
    outcome: Literal["completed", "withdrawn"]

    def __str__(self) -> str:
        return f"an interrupted {self.entry.kind} ({short(self.entry.id)}) was {self.outcome}"


@contextmanager
def writing(ledger: Ledger, model: ModelRecord, command: str, timeout: float = 0) -> Iterator[Settlement | None]:
    """Hold the checkpoint for a writing command: locked, settled, and exactly as the ledger's head says.

    Raises Locked, and WrongBase naming every difference, or the workspace that this one is a copy of, before anything
    is written.
    """
    with held_checkpoint(ledger, model, command, timeout):
        settlement = settle(ledger, model)
        require_as_head(ledger, model)
        yield settlement


@contextmanager
def held_checkpoint(ledger: Ledger, model: ModelRecord, command: str, timeout: float = 0) -> Iterator[None]:
    """Hold the lock of a model's folder, in which this ledger and no other writes.

    Raises Locked, also where the model was moved meanwhile, and WrongBase where its folder is gone or another's.
    """
    if not model.path.exists():  # what is there and no folder, the lock says
        require_there(model)
    with checkpoint_lock(model.path, command, timeout):
        require_own(ledger, model)
        with ledger.read() as db:
            path = store.model_with_id(db, model.id).path
        if path != model.path:
            raise Locked(f"{model.name} was moved to {path} meanwhile", remedy="run the command again")
        yield


def require_own(ledger: Ledger, model: ModelRecord) -> None:
    """Raises WrongBase where another workspace edits the folder, of which the ledger's own is a copy."""
    if (original := original_of(ledger, model.path)) is not None:
        message = f"{model.path} is edited by the workspace {original}, of which {ledger.workspace.root} is a copy"
        own = f"copy the model's folder too: malmen models move {model.name} COPY"
        raise WrongBase(message, remedy=f"work there (--workspace {original}), or {own}")


def require_head(ledger: Ledger, model: ModelRecord) -> None:
    """For readers: refuse a checkpoint that is not exactly as the ledger's head says. Writes nothing, takes no lock.

    Raises Locked while another process writes, WrongBase naming every difference or the interrupted entry.
    """
    require_unlocked(model)
    require_as_head(ledger, model)


def require_unlocked(model: ModelRecord) -> None:
    """Raises Locked while another process holds the checkpoint."""
    if is_locked(model.path):
        raise Locked(held_in_words([model.path]), remedy="run the command again when it has finished")


def require_there(model: ModelRecord) -> None:
    """Raises WrongBase where the model's folder is not where the ledger knows it."""
    if not model.path.is_dir():
        remedy = f"put the model back at that path, or say where it is: malmen models move {model.name} FOLDER"
        raise WrongBase(f"the folder {model.path} is gone", remedy=remedy)


def require_as_head(ledger: Ledger, model: ModelRecord) -> None:
    """Raises WrongBase where the checkpoint is not exactly as the head says, or an entry is not settled."""
    require_there(model)
    with ledger.read() as db:
        state = store.state(db, model.id)
        pending = store.pending_entry(db, model.id)
    if pending is not None:
        raise WrongBase(
            f"an interrupted {pending.kind} ({short(pending.id)}) is not settled", remedy="run malmen recover"
        )
    _require_state(model, state)


def require_settleable(ledger: Ledger, model: ModelRecord) -> None:
    """Before an entry is settled in a folder that may be a wrong one: raises WrongBase where it is. Writes nothing."""
    with ledger.read() as db:
        entry = store.pending_entry(db, model.id)
        state = store.state(db, model.id)
        deltas = [] if entry is None else store.deltas_of(db, entry.id)
    found = {} if entry is None else _before_or_after(model, entry, deltas)
    _require_state(model, {**state, **found})


def _require_state(model: ModelRecord, state: Mapping[str, str]) -> None:
    """Raises WrongBase naming every difference."""
    differences = check_checkpoint(model.path, model.manifest, state)
    if differences:
        raise WrongBase(f"{model.path} is not as the ledger left it: {listed(differences)}", remedy=NOT_OURS)


def commit_entry(ledger: Ledger, draft: EntryDraft, base: Sequence[str] = ()) -> Entry:
    """Make a draft the newest entry and the checkpoint what it says. Only within `writing`.

    The base's bytes of the tensors named in `base` are stored too, where they were not at registration.
    When a step fails before the checkpoint was touched, the entry is withdrawn; when it fails later, it stays pending
    for the next writing command. Raises WrongBase, VerificationFailed or MalmenError in words.
    """
    model = draft.model
    with ledger.read() as db:
        state = store.state(db, model.id)
        entries = store.fold(db, model.id)
    _check_active_digest(draft, entries)
    _require_room(ledger, draft, base)
    ensure_base_objects(ledger, model, base)
    _check_changes(ledger, draft, state)
    digests = ledger.objects.put_many(change.data for change in draft.changes)
    if digests != [change.after for change in draft.changes]:
        raise VerificationFailed("the new bytes of a tensor are not those of its digest", remedy="report this")
    deltas, packs = _all_deltas(draft), _store_rows(ledger, draft)
    require_held(model.path)
    with ledger.write() as db:
        if store.pending_entry(db, model.id) is not None:
            raise WrongBase("an interrupted entry was not settled", remedy="run the command again")
        entry = insert_entry(
            db,
            model,
            kind=draft.kind,
            active_digest=draft.active_digest,
            fact_set=draft.fact_set,
            target=draft.target,
            editor_id=draft.editor_id,
            deltas=deltas,
            packs=packs,
            command=draft.command,
            details=draft.details,
        )
    try:
        return _complete(ledger, model, entry, deltas, [c for c in draft.changes if c.before != c.after])
    except Exception:
        with suppress(MalmenError, OSError):
            found = _digests_now(model, deltas)
            if all(found[delta.tensor] == delta.before for delta in deltas):
                _withdraw(ledger, model, entry)
        raise


def settle(ledger: Ledger, model: ModelRecord, *, take_back: bool = False) -> Settlement | None:
    """Finish or withdraw an entry that a killed command left pending. The caller holds the checkpoint's lock.

    Forward when every tensor is new, back when all are old, else forward from the objects; where one of those is lost,
    back with `take_back`, else VerificationFailed. Writes only over digests that the entry names and that follow from
    the entries before it; raises WrongBase naming the tensor otherwise.
    """
    check_sidecar(model.path)
    remove_leftovers(model.path)
    with ledger.read() as db:
        entry = store.pending_entry(db, model.id)
        state = store.state(db, model.id)
        deltas = [] if entry is None else store.deltas_of(db, entry.id)
        follows = entry is None or entry.id == digest_of(db, model, entry, deltas, store.packs_of(db, entry.id))
    if entry is None:
        if not is_edited(model, state):  # a killed revert may have left it; but another ledger's is not ours to judge
            refresh_sidecar(ledger, model, edited=False)
        return None
    for delta in deltas:
        _check_delta(model, delta, state)
    if not follows:
        raise WrongBase(f"the interrupted {entry.kind} ({short(entry.id)}) is not what was begun", remedy=_BACKUP)
    found = _before_or_after(model, entry, deltas)
    old = [delta for delta in deltas if found[delta.tensor] != delta.after]
    if old and all(found[delta.tensor] == delta.before for delta in deltas):
        _withdraw(ledger, model, entry)
        return Settlement(entry, "withdrawn")
    try:
        changes = [TensorChange(d.tensor, d.before, d.after, ledger.objects.get(d.after)) for d in old]
    except VerificationFailed:
        if not take_back:
            raise
        return _take_back(ledger, model, entry, [d for d in deltas if found[d.tensor] == d.after != d.before])
    for change in changes:
        _check_length(model, change)
    require_room(ledger, model, changed=[change.name for change in changes])
    return Settlement(_complete(ledger, model, entry, deltas, changes), "completed")


def revert_from_objects(
    ledger: Ledger, model: ModelRecord, wanted: Mapping[str, str], get: Callable[[str, str], bytes | None] | None = None
) -> list[TensorChange]:
    """Changes that take the checkpoint from the head's state to `wanted` (tensor -> digest), from stored objects.

    Edited tensors that `wanted` does not name go back to the base. Raises VerificationFailed for a lost object.

    Args:
        get: gives the bytes of a tensor and digest in the objects' place.
    """
    with ledger.read() as db:
        state = store.state(db, model.id)
    changes = []
    for name in sorted(state.keys() | wanted.keys()):
        base = model.manifest.tensors[name].digest
        before, after = state.get(name, base), wanted.get(name, base)
        if before != after:
            data = None if get is None else get(name, after)
            changes.append(TensorChange(name, before, after, ledger.objects.get(after) if data is None else data))
    return changes


def _complete(
    ledger: Ledger,
    model: ModelRecord,
    entry: Entry,
    deltas: Sequence[ParameterDelta],
    changes: Sequence[TensorChange],
) -> Entry:
    """The second half of the write order, from the pending row on; also what settling forward does."""
    with ledger.read() as db:
        state = store.state(db, model.id)
    edited = is_edited(model, state | {delta.tensor: delta.after for delta in deltas})
    require_held(model.path)
    if edited:
        refresh_sidecar(ledger, model, edited=True)
    write_changes(model.path, model.manifest, changes)
    # A killed command may have renamed a shard without reaching the folder's sync.
    for name in {model.manifest.tensors[delta.tensor].file for delta in deltas}:
        fsync_path(model.path / name)
    fsync_folder(model.path)
    with ledger.write() as db:
        entry = mark_applied(db, entry)
    refresh_sidecar(ledger, model, edited=edited)
    return entry


def _take_back(ledger: Ledger, model: ModelRecord, entry: Entry, new: Sequence[ParameterDelta]) -> Settlement:
    """Withdraw an entry whose new bytes are lost: from the objects of what was before, in the tensors that are new.

    Raises VerificationFailed where those are lost too.
    """
    changes = [TensorChange(d.tensor, d.after, d.before, ledger.objects.get(d.before)) for d in new]
    require_room(ledger, model, changed=[change.name for change in changes])
    write_changes(model.path, model.manifest, changes)
    fsync_folder(model.path)
    _withdraw(ledger, model, entry)
    return Settlement(entry, "withdrawn")


def _withdraw(ledger: Ledger, model: ModelRecord, entry: Entry) -> None:
    with ledger.write() as db:
        withdraw(db, entry)
        state = store.state(db, model.id)
    refresh_sidecar(ledger, model, edited=is_edited(model, state))


def _check_changes(ledger: Ledger, draft: EntryDraft, state: Mapping[str, str]) -> None:
    for change in draft.changes:
        _check_length(draft.model, change)
        if change.before != state.get(change.name, draft.model.manifest.tensors[change.name].digest):
            raise WrongBase(f"the change of {change.name} starts from another state", remedy="run the command again")
        if not ledger.objects.contains(change.before):
            message = f"the bytes of {change.name} before this entry are not stored"
            raise VerificationFailed(message, remedy=LOST)
    if len({change.name for change in draft.changes}) != len(draft.changes):
        raise UnsafeFile("a tensor is changed twice by one entry", remedy="report this")


def _check_length(model: ModelRecord, change: TensorChange) -> None:
    slot = model.manifest.slot(change.name)
    if len(change.data) != slot.length:
        raise UnsafeFile(
            f"tensor {change.name} takes {slot.length} bytes, not {len(change.data)}",
            remedy="the editor was made for another model; an editor is bound to one base",
        )


def _require_room(ledger: Ledger, draft: EntryDraft, base: Sequence[str]) -> None:
    model, stored = draft.model, ledger.objects.contains
    slots = {model.manifest.tensors[name].digest: model.manifest.slot(name).length for name in base}
    objects = slots | {change.after: len(change.data) for change in draft.changes}
    require_room(
        ledger,
        model,
        changed=[change.name for change in draft.changes if change.before != change.after],
        objects=[size for digest, size in objects.items() if not stored(digest)],
        facts=draft.fact_set,
        rows=sum(len(rows.spans) for rows in draft.new_rows),
        text=len(canonical_json(dict(draft.details)).encode()),
        staged=[rows.data for rows in draft.new_rows],
    )


def _check_active_digest(draft: EntryDraft, entries: list[EntryFacts]) -> None:
    """The draft's digest must be the fold's: revert finds earlier states by it."""
    facts = draft.fact_set.facts if draft.fact_set is not None else ()
    refs = tuple(FactRef(fact.digest, fact.edit_digest, fact.prompt) for fact in facts)
    active = active_facts([*entries, EntryFacts("", draft.kind, refs, draft.target)])
    if active_digest(draft.editor_id, active) != draft.active_digest:
        raise VerificationFailed(
            "the entry does not lead to the active facts it was computed for", remedy="report this"
        )


def _all_deltas(draft: EntryDraft) -> list[ParameterDelta]:
    """A delta per change, the given ones where there are figures. Raises VerificationFailed where they disagree."""
    given = {delta.tensor: delta for delta in draft.deltas}
    deltas = [given.pop(c.name, ParameterDelta(c.name, c.before, c.after)) for c in draft.changes]
    pairs = zip(deltas, draft.changes, strict=True)
    if given or any((delta.before, delta.after) != (change.before, change.after) for delta, change in pairs):
        raise VerificationFailed("figures were given for a change that is not made", remedy="report this")
    return deltas


def _store_rows(ledger: Ledger, draft: EntryDraft) -> list[RowPack]:
    if not draft.new_rows:
        return []
    if draft.editor_id is None:
        raise VerificationFailed("rows without an editor", remedy="report this")
    digests = ledger.objects.put_many(rows.data for rows in draft.new_rows)
    return [
        RowPack(draft.editor_id, rows.layer, digest, rows.spans)
        for rows, digest in zip(draft.new_rows, digests, strict=True)
    ]


def _check_delta(model: ModelRecord, delta: ParameterDelta, state: Mapping[str, str]) -> None:
    """A pending entry may come from a stranger's workspace: only tensors of the model, only from the state before."""
    model.manifest.slot(delta.tensor)
    known = state.get(delta.tensor, model.manifest.tensors[delta.tensor].digest)
    if delta.before != known or not is_digest(delta.after):
        raise WrongBase(
            f"the interrupted entry's change of {delta.tensor!a} does not follow from the entry before it",
            remedy=_BACKUP,
        )


def _before_or_after(model: ModelRecord, entry: Entry, deltas: Sequence[ParameterDelta]) -> dict[str, str]:
    """Digests of the tensors that a pending entry names. Raises WrongBase naming one that it does not know."""
    found = _digests_now(model, deltas)
    for delta in deltas:
        if found[delta.tensor] not in (delta.before, delta.after):
            raise WrongBase(
                f"tensor {delta.tensor} in {model.path} is neither as before nor as after the interrupted {entry.kind}",
                remedy=NOT_OURS,
            )
    return found


def _digests_now(model: ModelRecord, deltas: Sequence[ParameterDelta]) -> dict[str, str]:
    """Digests of the named tensors in the checkpoint. Raises WrongBase where a file or its header is another one."""
    manifest = model.manifest
    try:
        for name in {manifest.tensors[delta.tensor].file for delta in deltas}:
            weights = manifest.weights[name]
            with open_regular(model.path / name):
                pass
            if digest_file(model.path / name, 0, weights.header_size) != weights.header_digest:
                raise WrongBase(f"the header of {model.path / name} was changed", remedy=NOT_OURS)
        found = {}
        for delta in deltas:
            slot = manifest.slot(delta.tensor)
            path = model.path / manifest.tensors[delta.tensor].file
            found[delta.tensor] = digest_file(path, slot.start, slot.length)
        return found
    except (OSError, UnsafeFile) as error:
        raise WrongBase(f"{model.path} cannot be read: {error}", remedy=NOT_OURS) from error


def is_edited(model: ModelRecord, state: Mapping[str, str]) -> bool:
    return any(digest != model.manifest.tensors[name].digest for name, digest in state.items())
