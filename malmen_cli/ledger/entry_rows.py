"""The rows that make an entry: inserting them as one, marking it applied, and taking it out again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import malmen_cli
from malmen_cli.checkpoint.digests import canonical_json
from malmen_cli.errors import UsageError, WrongBase
from malmen_cli.facts import FactSet
from malmen_cli.facts.decoding import encodable
from malmen_cli.ledger import store
from malmen_cli.ledger.chain import entry_digest
from malmen_cli.ledger.connection import insert
from malmen_cli.ledger.records import Entry, Kind, ModelRecord, ParameterDelta, RowPack


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def insert_entry(
    db: sqlite3.Connection,
    model: ModelRecord,
    *,
    kind: Kind,
    active_digest: str,
    fact_set: FactSet | None = None,
    target: str | None = None,
    editor_id: str | None = None,
    deltas: Sequence[ParameterDelta] = (),
    packs: Sequence[RowPack] = (),
    command: str = "",
    details: Mapping[str, Any] | None = None,
) -> Entry:
    """Insert an entry after the model's head with all that belongs to it: applied for `register`, else pending."""
    parent = None if kind == "register" else store.head(db, model.id)
    source = None if fact_set is None or kind != "apply" else fact_set.source
    entry = Entry(
        id="",
        model_id=model.id,
        number=1 if parent is None else parent.number + 1,
        kind=kind,
        status="applied" if kind == "register" else "pending",
        parent=None if parent is None else parent.id,
        fact_set_digest=None if fact_set is None else fact_set.digest,
        target=target,
        editor_id=editor_id,
        active_digest=active_digest,
        source=None if source is None else encodable(source),
        created_at=now(),
        command=encodable(command),
        # Through JSON and back: the chain must hash what a later reader will find.
        details=json.loads(canonical_json({"malmen": malmen_cli.__version__, **(details or {})})),
    )
    entry = replace(entry, id=digest_of(db, model, entry, deltas, packs))
    if fact_set is not None:
        _insert_facts(db, fact_set)
    insert(db, "entries", **asdict(entry) | {"details": canonical_json(entry.details)})
    for delta in deltas:
        insert(db, "parameter_deltas", entry_id=entry.id, **asdict(delta))
    for pack in packs:
        _insert_pack(db, entry.id, pack)
    stored_again(db, [delta.after for delta in deltas])
    return entry


def digest_of(
    db: sqlite3.Connection,
    model: ModelRecord,
    entry: Entry,
    deltas: Iterable[ParameterDelta],
    packs: Iterable[RowPack],
) -> str:
    """The id that follows from what an entry says, its editor's record being that of the database."""
    editor = None if entry.editor_id is None else store.editor(db, entry.editor_id).record_digest
    return entry_digest(entry, base_digest=model.base_digest, editor_record=editor, deltas=deltas, packs=packs)


def stored_again(db: sqlite3.Connection, digests: Iterable[str]) -> None:
    """Take objects off the list of those that gc has dropped: they have been put in place anew."""
    query = "DELETE FROM dropped_objects WHERE digest IN (SELECT value FROM json_each(?))"
    db.execute(query, (json.dumps(list(digests)),))


def mark_applied(db: sqlite3.Connection, entry: Entry) -> Entry:
    """Raises WrongBase where the pending entry is gone: whoever settled it did not respect the checkpoint's lock."""
    changed = db.execute("UPDATE entries SET status = 'applied' WHERE id = ? AND status = 'pending'", (entry.id,))
    if changed.rowcount != 1:
        message = f"another process settled the {entry.kind} {entry.id} while this one was writing it"
        raise WrongBase(message, remedy="run malmen verify; was a lock file removed by hand?")
    return replace(entry, status="applied")


def withdraw(db: sqlite3.Connection, entry: Entry) -> None:
    """Delete a pending entry and what only it brought: deltas and rows with it, facts that no other set holds."""
    db.execute("DELETE FROM entries WHERE id = ? AND status = 'pending'", (entry.id,))
    db.execute(
        "DELETE FROM fact_sets WHERE digest = ? AND NOT EXISTS "
        "(SELECT 1 FROM entries WHERE fact_set_digest = fact_sets.digest)",
        (entry.fact_set_digest,),
    )
    db.execute("DELETE FROM facts WHERE NOT EXISTS (SELECT 1 FROM fact_set_members WHERE fact_digest = facts.digest)")


def _insert_facts(db: sqlite3.Connection, fact_set: FactSet) -> None:
    if db.execute("SELECT 1 FROM fact_sets WHERE digest = ?", (fact_set.digest,)).fetchone():
        return
    insert(db, "fact_sets", digest=fact_set.digest, size=len(fact_set.facts))
    db.executemany(
        "INSERT OR IGNORE INTO facts (digest, edit_digest, prompt, target, subject, content) VALUES (?, ?, ?, ?, ?, ?)",
        (
            (fact.digest, fact.edit_digest, fact.prompt, fact.target, fact.subject, fact.canonical_json())
            for fact in fact_set.facts
        ),
    )
    db.executemany(
        "INSERT INTO fact_set_members (fact_set_digest, position, fact_digest) VALUES (?, ?, ?)",
        ((fact_set.digest, position, fact.digest) for position, fact in enumerate(fact_set.facts)),
    )


def _insert_pack(db: sqlite3.Connection, entry_id: str, pack: RowPack) -> None:
    """Rows are captured once per (editor, edit, layer): a second capture could differ in its last bits."""
    pack_id = insert(db, "row_packs", entry_id=entry_id, editor_id=pack.editor_id, layer=pack.layer, object=pack.object)
    db.executemany(
        "INSERT INTO fact_rows (edit_digest, pack_id, start, count) VALUES (?, ?, ?, ?)",
        ((span.edit_digest, pack_id, span.start, span.count) for span in pack.spans),
    )
    query = (
        "SELECT count(*) FROM fact_rows AS new JOIN fact_rows AS old USING (edit_digest) "
        "JOIN row_packs ON row_packs.id = old.pack_id "
        "WHERE new.pack_id = ?1 AND old.pack_id <> ?1 AND editor_id = ?2 AND layer = ?3"
    )
    [known] = db.execute(query, (pack_id, pack.editor_id, pack.layer)).fetchone()
    if known:
        raise UsageError(f"{known} facts have stored rows at {pack.layer} already", remedy="use the stored rows")
