"""Seals: digests over every part of the ledger that the hash chain does not reach, renewed with every transaction.

The chain covers entries with their facts, figures and rows. What may change without a new entry is sealed: names and
paths, settings, editors, splits, what gc has dropped, which entries there are and how far each has come, and the schema
itself. A seal that was broken before a transaction is left broken by it: writing on never blesses what a stranger did.

Whoever recomputes every digest, of the chain and of the seals, is found only from outside: the anchor is one digest
over all that is sealed, to be kept elsewhere and given to `malmen verify --expect`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from malmen_cli.checkpoint.digests import digest_bytes, digest_json
from malmen_cli.errors import UnusableLedger

# By what is sealed: what one seal is over, and the rows in the order of a key. Where it is a row or a model, the first
# column says which. A model's manifest and architecture are large, and held by its base digest and its first entry.
SEALED = {
    # But for what ANALYZE notes for SQLite's own use, and any tool that opens the file may run.
    "schema": (
        "",
        "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT GLOB 'sqlite_stat[0-9]' ORDER BY 1, 2",
    ),
    "table alembic_version": ("", "SELECT version_num FROM alembic_version ORDER BY 1"),
    "table settings": ("row", "SELECT key, value FROM settings ORDER BY key"),
    "table models": ("row", "SELECT id, name, path, base_digest, created_at FROM models ORDER BY id"),
    "table editors": (
        "row",
        "SELECT id, model_id, digest, created_at, per_fact, config, scores FROM editors ORDER BY id",
    ),
    "table entries": ("model", "SELECT model_id, number, id, status FROM entries ORDER BY model_id, number, id"),
    "table row_packs": ("", "SELECT id, entry_id, editor_id, layer, object FROM row_packs ORDER BY id"),
    "table splits": (
        "row",
        "SELECT name, path, format, on_conflict, digest, facts, added_at FROM splits ORDER BY name",
    ),
    "table dropped_objects": ("", "SELECT digest, dropped_at FROM dropped_objects ORDER BY digest"),
    # Their results, which are many, are held by results_digest.
    "table evaluations": (
        "row",
        "SELECT id, model_id, entry_id, editor_id, source, facts_digest, facts, results_digest, created_at, command, "
        "details FROM evaluations ORDER BY id",
    ),
}


class Seals(NamedTuple):
    """The seals as they are kept, and as the rows would have them, by what they are over."""

    stored: dict[str, str]
    computed: dict[str, str]

    def broken(self) -> Iterator[tuple[str, str]]:
        """Of every seal that does not hold, what it is over, and in words what about it."""
        for name in sorted(self.stored.keys() | self.computed.keys(), key=str):
            if name not in self.stored:
                yield name, "is not sealed: it was added behind malmen's back, or its seal was removed"
            elif name not in self.computed:
                yield name, "is sealed, but not there: it was removed behind malmen's back, or its seal was added"
            elif self.stored[name] != self.computed[name]:
                yield name, "does not fit its seal: it was changed behind malmen's back"

    @property
    def anchor(self) -> str:
        """One digest over all that is sealed; with the chain, it names everything that the ledger says."""
        return digest_json(self.computed)


def read(db: sqlite3.Connection) -> Seals:
    """The seals of a ledger, within the caller's transaction."""
    return Seals({row[0]: row[1] for row in db.execute("SELECT name, digest FROM seals")}, _computed(db))


def renew(db: sqlite3.Connection, before: Seals) -> None:
    """Seal what changed since `before`, in the transaction that changed it; what did not hold then is left alone."""
    now = _computed(db)
    for name in now.keys() | before.computed.keys():
        old, new = before.stored.get(name), now.get(name)
        if old == before.computed.get(name) and old != new:
            if new is None:
                db.execute("DELETE FROM seals WHERE name = ?", (name,))
            else:
                db.execute("INSERT OR REPLACE INTO seals (name, digest) VALUES (?, ?)", (name, new))


def require_sound(db: sqlite3.Connection) -> None:
    """Raises UnusableLedger where a seal is broken: for a migration, which would make all of them anew."""
    broken = next(read(db).broken(), None)
    if broken is not None:
        raise UnusableLedger(
            f"the ledger cannot be upgraded: ledger.db {broken[0]} {broken[1]}",
            remedy="restore ledger.db from a backup, or look into it with the malmen that made it (malmen verify)",
        )


def seal_all(db: sqlite3.Connection) -> None:
    """Seal everything as it is: for a migration, in its transaction."""
    db.execute("DELETE FROM seals")
    renew(db, Seals({}, {}))


def _computed(db: sqlite3.Connection) -> dict[str, str]:
    digests: dict[str, str] = {}
    tables = {str(row[0]) for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for what, (each, query) in SEALED.items():
        if what.startswith("table ") and what.removeprefix("table ") not in tables:
            continue  # of a later revision than the ledger is of, while it is upgraded
        parts: dict[str, list[tuple[object, ...]]] = {} if each else {what: []}
        for row in db.execute(query):
            name = f"{what}, {each} {_json(row[0])}" if each else what
            parts.setdefault(name, []).append(tuple(row))
        digests |= {name: digest_bytes(_json(rows).encode()) for name, rows in parts.items()}
    return digests


def _json(value: object) -> str:
    # A value that is neither text nor number is somebody's tampering; it has a digest all the same.
    return json.dumps(value, separators=(",", ":"), default=lambda blob: {"blob": blob.hex()})
