"""States of a model as a user names them: an entry's, the base, the checkpoint as its bytes lie now. No torch."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from malmen_cli.checkpoint.digests import digest_bytes, short
from malmen_cli.checkpoint.manifest import other_differences, tensor_digests
from malmen_cli.checkpoint.safetensors_file import read_tensor
from malmen_cli.errors import MalmenError, UnsafeFile, UsageError, VerificationFailed
from malmen_cli.ledger import Entry, FactRef, Ledger, ModelRecord, active_facts, require_there, store
from malmen_cli.operations.models import find_model

BASE, CHECKPOINT = "base", "checkpoint"


@dataclass(frozen=True)
class State:
    """The tensors and the active facts of one state.

    Attributes:
        entry: whose state it is; of the base the register entry, of the checkpoint the head.
        digests: digests of tensors, by name; one that is not named is as in the base.
        facts: the active facts, by prompt. unreadable: tensors of the checkpoint whose file is not what it was.
        strange: tensors of the checkpoint that are not as the head left them.
        remarks: in words, files of the checkpoint that are not as they were registered.
    """

    name: str
    entry: Entry
    digests: Mapping[str, str]
    facts: Mapping[str, FactRef]
    unreadable: frozenset[str] = frozenset()
    strange: Sequence[str] = ()
    remarks: Sequence[str] = field(default=())

    def digest(self, model: ModelRecord, tensor: str) -> str:
        return self.digests.get(tensor, model.manifest.tensors[tensor].digest)

    def __str__(self) -> str:
        if self.name in (BASE, CHECKPOINT):
            return self.name
        return f"#{self.entry.number} {short(self.entry.id)}"


def owner(db: sqlite3.Connection, model: str | None, *names: str) -> ModelRecord:
    """The model whose states are meant: the one named, else that of the first entry named by its id, else the only one.

    Raises:
        UnknownName, UsageError: none fits, or several.
    """
    if model is None:
        for name in names:
            if name not in (BASE, CHECKPOINT) and not name.startswith(("HEAD", "#")):
                return store.model_with_id(db, store.resolve_entry(db, name).model_id)
    return find_model(db, model)


def named_state(db: sqlite3.Connection, model: ModelRecord, name: str) -> State:
    """The state called `base`, `checkpoint`, or by an entry: its id or the first digits, HEAD, HEAD~1, #7.

    The checkpoint is read whole, and differences from the head are part of the answer.

    Raises:
        UnknownName: no such entry. UsageError: an interrupted entry, which has no state. WrongBase: the checkpoint's
            folder is gone.
    """
    if name == CHECKPOINT:
        return _checkpoint(db, model)
    if name == BASE:
        return State(BASE, store.resolve_entry(db, "#1", model.id), {}, {})
    entry = store.resolve_entry(db, name, model.id)
    if entry.status != "applied":
        raise UsageError(
            f"the interrupted {entry.kind} {short(entry.id)} has no state",
            remedy="run malmen recover, which completes or withdraws it",
        )
    digests = store.state(db, model.id, entry.number)
    return State(name, entry, digests, active_facts(store.fold(db, model.id, entry.number)))


def _checkpoint(db: sqlite3.Connection, model: ModelRecord) -> State:
    require_there(model)  # without a file there would be no difference in tensors, and the head's facts in nothing
    head = store.head(db, model.id)
    expected = store.state(db, model.id)
    digests, remarks = tensor_digests(model.path, model.manifest)
    tensors = model.manifest.tensors
    strange = [
        name for name in tensors if name in digests and digests[name] != expected.get(name, tensors[name].digest)
    ]
    return State(
        CHECKPOINT,
        head,
        digests,
        _facts_in(db, model, digests) if strange else active_facts(store.fold(db, model.id)),
        unreadable=frozenset(tensors.keys() - digests.keys()),
        strange=strange,
        remarks=[*remarks, *other_differences(model.path, model.manifest)],
    )


def _facts_in(db: sqlite3.Connection, model: ModelRecord, digests: Mapping[str, str]) -> Mapping[str, FactRef]:
    """The active facts of the newest entry whose very tensors these are (somebody put them back); else the head's."""
    base = {name: record.digest for name, record in model.manifest.tensors.items()}
    for entry in store.entries(db, model.id):
        if entry.status == "applied" and base | store.state(db, model.id, entry.number) == digests:
            return active_facts(store.fold(db, model.id, entry.number))
    return active_facts(store.fold(db, model.id))


class TensorBytes:
    """The bytes of a model's tensors in any of their states: from the objects, from the checkpoint itself, or (what gc
    has dropped, or was lost) solved again from the base and the stored rows, which alone loads torch."""

    def __init__(self, ledger: Ledger, model: ModelRecord) -> None:
        self._ledger, self._model = ledger, model
        self._rebuilt: dict[tuple[str, str], bytes] = {}  # by tensor and digest
        self._failed: dict[str, VerificationFailed] = {}  # by entry

    def get(self, tensor: str, digest: str) -> bytes | None:
        """The tensor's bytes of this digest; None where the ledger never had them and the checkpoint has others.

        Raises:
            MalmenError: the ledger had them, and they are neither stored nor to be had again from the rows.
        """
        if (tensor, digest) in self._rebuilt:
            return self._rebuilt[tensor, digest]
        damage: VerificationFailed | None = None
        if self._ledger.objects.contains(digest):
            try:
                return self._ledger.objects.get(digest)
            except VerificationFailed as error:
                damage = error  # or gc has dropped it between the two looks
        record = self._model.manifest.tensors[tensor]
        try:
            data = read_tensor(self._model.path / record.file, self._model.manifest.slot(tensor))
        except UnsafeFile:
            data = b""
        if digest_bytes(data) == digest:
            return data
        if (entry := self._whose(tensor, digest)) is not None:
            from malmen_cli.operations.rebuilding import rebuild

            if entry.id in self._failed:
                raise self._failed[entry.id]
            try:
                rebuilt = rebuild(self._ledger, self._model, entry)
            except VerificationFailed as error:
                self._failed[entry.id] = error  # not once more for every tensor
                raise
            self._rebuilt |= {(name, digest_bytes(data)): data for name, data in rebuilt.items()}
            return self._rebuilt[tensor, digest]
        if damage is not None:
            raise damage
        if self._was_stored(tensor, digest):
            raise MalmenError(
                f"tensor {tensor} in the state {short(digest)} is no longer stored",
                remedy="it was lost: run malmen verify; restore the workspace from a backup",
            )
        return None

    def _whose(self, tensor: str, digest: str) -> Entry | None:
        """The newest entry that left the tensor so."""
        with self._ledger.read() as db:
            query = (
                "SELECT number FROM entries JOIN parameter_deltas ON entry_id = id WHERE model_id = ? AND tensor = ? "
                "AND after = ? AND status = 'applied' ORDER BY number DESC LIMIT 1"
            )
            row = db.execute(query, (self._model.id, tensor, digest)).fetchone()
            return None if row is None else store.resolve_entry(db, f"#{row['number']}", self._model.id)

    def _was_stored(self, tensor: str, digest: str) -> bool:
        with self._ledger.read() as db:
            query = "SELECT 1 FROM parameter_deltas WHERE tensor = ?1 AND ?2 IN (before, after) LIMIT 1"
            if db.execute(query, (tensor, digest)).fetchone() is not None:
                return True
            register = store.resolve_entry(db, "#1", self._model.id)
        is_base = digest == self._model.manifest.tensors[tensor].digest
        return is_base and tensor in register.details.get("base_tensors", ())
