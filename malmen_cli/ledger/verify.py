"""Rereading everything: every object, row, link of the chain, seal and byte of the checkpoints.

Damage is reported, never raised: a ledger that cannot be read at all is one more problem in the list.

What cannot be found from inside: a ledger that somebody has rewritten as a whole, every digest computed anew, and one
that was put back as a whole to what it was at an earlier time, checkpoint included. `malmen verify --expect` finds
both, given a digest that was kept elsewhere: a head entry's id (that model's entries, and all that they cover), or the
anchor (all that the ledger says).
"""

from __future__ import annotations

import sqlite3

from malmen_cli.checkpoint.digests import digest_bytes, digest_json, short
from malmen_cli.ledger import store
from malmen_cli.ledger.active_set import active_digest, active_facts
from malmen_cli.ledger.database import Ledger
from malmen_cli.ledger.entry_rows import digest_of
from malmen_cli.ledger.evaluations import verify_evaluations
from malmen_cli.ledger.records import Entry, ModelRecord, ParameterDelta
from malmen_cli.ledger.verification import Problem, Verification
from malmen_cli.ledger.verify_database import verify_columns, verify_facts, verify_pages, verify_seals
from malmen_cli.ledger.verify_files import verify_checkpoint, verify_editor, verify_objects

__all__ = ["Problem", "Verification", "verify_ledger"]


def verify_ledger(ledger: Ledger, model: ModelRecord | None = None, *, quick: bool = False) -> Verification:
    """Reread the workspace and the checkpoint of `model` (of every model without it). Writes nothing.

    Quickly, only what takes no longer with more facts or larger weights: the seals; that each entry and each of its
    changes follows the one before; that objects, editors and checkpoint files are there, of their size, their headers
    unchanged. Not seen then: changed bytes of tensors, rows, facts, editors, and of what an entry says.
    """
    found = Verification()
    with ledger.read() as db:
        # Text that is no UTF-8 any more must not stop the reading of other rows; no digest fits it.
        factory, db.text_factory = db.text_factory, _any_text
        try:
            found.attempt("ledger.db", _verify_all, ledger, db, model, found, quick)
        finally:
            db.text_factory = factory
    return found


def _any_text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")


def _verify_all(
    ledger: Ledger, db: sqlite3.Connection, model: ModelRecord | None, found: Verification, quick: bool
) -> None:
    found.checked["databases"] += 1
    if not quick:
        found.attempt("ledger.db", verify_pages, db, found)
        found.attempt("ledger.db", verify_columns, db, found)
    found.attempt("ledger.db seals", verify_seals, db, found)
    models: list[ModelRecord] = []
    for row in db.execute("SELECT * FROM models ORDER BY id").fetchall():
        found.attempt(f"model {row['name']}", _read_model, row, models)
    found.attempt("objects", verify_objects, ledger, db, models, found, quick)
    if not quick:
        found.attempt("facts", verify_facts, db, found)
    found.attempt("evaluations", verify_evaluations, db, found, quick)
    for row in db.execute("SELECT id, digest FROM editors ORDER BY id").fetchall():
        found.attempt(f"editor {row['id']}", verify_editor, ledger, row, found, quick)
    for record in models:
        if model is None or record.id == model.id:
            found.attempt(f"model {record.name}", _verify_model, db, record, found, quick)


def _read_model(row: sqlite3.Row, models: list[ModelRecord]) -> None:
    models.append(store.model_from(row))


def _verify_model(db: sqlite3.Connection, model: ModelRecord, found: Verification, quick: bool) -> None:
    found.checked["models"] += 1
    unchanged = digest_bytes(model.manifest_json.encode(errors="surrogateescape")) == model.base_digest
    found.expect(unchanged, f"model {model.name}", "its manifest was changed")
    entries: list[Entry] = []
    state: dict[str, str] = {}
    for row in db.execute("SELECT * FROM entries WHERE model_id = ? ORDER BY number", (model.id,)).fetchall():
        found.checked["entries"] += 1
        where = _entry_name(model, row["id"], row["number"])
        found.attempt(where, _verify_entry, db, model, row, entries, state, found, quick)
    found.expect(bool(entries), f"model {model.name}", "its register entry is missing")
    if not quick:
        found.attempt(f"model {model.name}", _verify_active_facts, db, model, entries, found)
    found.attempt(f"checkpoint {model.path}", verify_checkpoint, model, store.state(db, model.id), found, quick)


def _verify_entry(
    db: sqlite3.Connection,
    model: ModelRecord,
    row: sqlite3.Row,
    entries: list[Entry],
    state: dict[str, str],
    found: Verification,
    quick: bool,
) -> None:
    """One entry against its id and the one before; `entries` and `state` (tensor -> digest) go from entry to entry."""
    entry = store.entry_from(row)
    parent = entries[-1] if entries else None
    entries.append(entry)
    where = _name(model, entry)
    deltas = store.deltas_of(db, entry.id)
    if not quick:
        found.attempt(where, _verify_digest, db, model, entry, deltas, found)
    expected = (None, 1) if parent is None else (parent.id, parent.number + 1)
    found.expect((entry.parent, entry.number) == expected, where, "it does not follow the entry before it")
    if parent is None:
        found.expect(entry.kind == "register", where, "it is first but does not register the model")
        unchanged = digest_json(model.architecture) == entry.details.get("architecture")
        found.expect(unchanged, f"model {model.name}", "its architecture was changed")
    if entry.status == "pending":
        found.report(where, "it was interrupted; the next writing command settles it")
        return
    for delta in deltas:
        model.manifest.slot(delta.tensor)  # says so when there is no such tensor
        before = state.get(delta.tensor, model.manifest.tensors[delta.tensor].digest)
        found.expect(
            delta.before == before, where, f"tensor {delta.tensor} does not start where the last entry left it"
        )
        state[delta.tensor] = delta.after


def _verify_digest(
    db: sqlite3.Connection, model: ModelRecord, entry: Entry, deltas: list[ParameterDelta], found: Verification
) -> None:
    packs, where = store.packs_of(db, entry.id), _name(model, entry)
    follows = digest_of(db, model, entry, deltas, packs) == entry.id
    found.expect(follows, where, "its content was changed, its id no longer follows from it")
    found.expect({pack.editor_id for pack in packs} <= {entry.editor_id}, where, "its rows are another editor's")


def _verify_active_facts(db: sqlite3.Connection, model: ModelRecord, entries: list[Entry], found: Verification) -> None:
    fold = store.fold(db, model.id)
    applied = [entry for entry in entries if entry.status == "applied"]
    for number, entry in enumerate(applied, 1):
        follows = active_digest(entry.editor_id, active_facts(fold[:number])) == entry.active_digest
        found.expect(follows, _name(model, entry), "its active facts are not those of the entries up to it")


def _name(model: ModelRecord, entry: Entry) -> str:
    return _entry_name(model, entry.id, entry.number)


def _entry_name(model: ModelRecord, digest: object, number: object) -> str:
    return f"entry {short(digest) if isinstance(digest, str) else repr(digest)} (#{number} of {model.name})"
