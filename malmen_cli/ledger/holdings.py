"""What an entry holds on disk: the objects that it put into the workspace, or found there."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from malmen_cli.ledger import store
from malmen_cli.ledger.objects import ObjectStore
from malmen_cli.ledger.records import Entry, ModelRecord


@dataclass(frozen=True, slots=True)
class Holding:
    """Sizes in bytes of an entry's objects, each object counted once.

    Attributes:
        tensors: edited tensors as the entry left them; of a register entry, the base's. rows: rows of its new facts.
        shared: of both, what another entry holds as well: a revert's tensors are mostly those of an earlier state.
        dropped: objects that are not there, as after gc.
    """

    tensors: int
    rows: int
    shared: int
    dropped: int

    @property
    def total(self) -> int:
        return self.tensors + self.rows


def holding(db: sqlite3.Connection, objects: ObjectStore, model: ModelRecord, entry: Entry) -> Holding:
    """What one entry of a model holds; reads sizes, not bytes."""
    tensors, rows = _tensors(db, model, entry), {pack.object for pack in store.packs_of(db, entry.id)}
    sizes = {digest: objects.size(digest) for digest in tensors | rows}
    return Holding(
        tensors=_sum(sizes[digest] for digest in tensors),
        rows=_sum(sizes[digest] for digest in rows),
        shared=_sum(sizes[digest] for digest in tensors & _of_others(db, entry)),
        dropped=sum(size is None for size in sizes.values()),
    )


def _tensors(db: sqlite3.Connection, model: ModelRecord, entry: Entry) -> set[str]:
    if entry.kind == "register":
        return {model.manifest.tensors[name].digest for name in entry.details.get("base_tensors", ())}
    return {delta.after for delta in store.deltas_of(db, entry.id)}


def _of_others(db: sqlite3.Connection, entry: Entry) -> set[str]:
    """Tensors of every other entry, of other models too: what has the same bytes is one object."""
    query = "SELECT after FROM parameter_deltas WHERE entry_id <> ?"
    found = {str(row[0]) for row in db.execute(query, (entry.id,))}
    for model in store.models(db):
        first = store.resolve_entry(db, "#1", model.id)
        if first.id != entry.id:
            found |= _tensors(db, model, first)
    return found


def _sum(sizes: Iterable[int | None]) -> int:
    return sum(size for size in sizes if size is not None)
