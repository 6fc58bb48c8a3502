"""The rows of the database as such: pages, schema, seals, types, spellings, and facts, which name themselves."""

from __future__ import annotations

import json
import sqlite3

from malmen_cli.checkpoint.digests import canonical_json, short
from malmen_cli.facts import Fact, FactSet
from malmen_cli.ledger import seals, store
from malmen_cli.ledger.verification import Verification

# Storage classes that a column may hold, by its declared type.
_CLASSES = {"TEXT": "text", "VARCHAR(32)": "text", "INTEGER": "integer", "BOOLEAN": "integer", "FLOAT": "real"}

# Columns of JSON with the one that names their row, but for those that are digested as they are spelt.
_JSON = {
    "models": ("name", "architecture"),
    "editors": ("id", "config", "scores"),
    "entries": ("id", "details"),
    "evaluations": ("id", "details"),
}


def verify_pages(db: sqlite3.Connection, found: Verification) -> None:
    """SQLite's own checks: every page, index and reference between rows."""
    for row in db.execute("PRAGMA integrity_check"):
        found.expect(row[0] == "ok", "ledger.db", str(row[0]))
    for row in db.execute("PRAGMA foreign_key_check"):
        found.report(
            f"ledger.db table {row['table']}", f"row {row['rowid']} points at a missing row of {row['parent']}"
        )


def verify_seals(db: sqlite3.Connection, found: Verification) -> None:
    """What the chain does not cover, and the schema, against their seals."""
    now = seals.read(db)
    for name, what in now.broken():
        found.report(f"ledger.db {name}", what)
    found.anchor = now.anchor


def verify_columns(db: sqlite3.Connection, found: Verification) -> None:
    """Every value is of its column's type; every JSON text is spelt as malmen spells it.

    SQLite stores any type anywhere, and infinities: a digest over what a reader makes of a value would not notice.
    """
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT GLOB 'sqlite_*' ORDER BY name"
    for table in [row[0] for row in db.execute(query)]:
        found.attempt(f"ledger.db table {table}", _verify_types, db, table, found)
    for table, (key, *columns) in _JSON.items():
        for row in db.execute(f"SELECT {', '.join((key, *columns))} FROM {table}"):
            for column in columns:
                where = f"ledger.db table {table}, row {_name(row[key])}, column {column}"
                found.attempt(where, _verify_json, row[column], where, found)


def _verify_types(db: sqlite3.Connection, table: str, found: Verification) -> None:
    for column in db.execute(f"PRAGMA table_info({_quoted(table)})").fetchall():
        name, wanted = column["name"], _CLASSES[column["type"]]
        kind = f"typeof({_quoted(name)})"
        nullable = not (column["notnull"] or column["pk"])
        wrong = f"{kind} <> '{wanted}'" + (f" AND {kind} <> 'null'" if nullable else "")
        if wanted == "real":
            wrong += f" OR abs({_quoted(name)}) = 9e999"
        for row in db.execute(f"SELECT rowid AS number, {kind} AS kind FROM {_quoted(table)} WHERE {wrong}"):
            said = f"column {name} holds a value that malmen would not have written ({row['kind']})"
            found.report(f"ledger.db table {table}, row {row['number']}", said)


def _verify_json(text: object, where: str, found: Verification) -> None:
    same = canonical_json(store.load_json(text)) == text
    found.expect(same, where, "its JSON is spelt otherwise than malmen spells it")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def verify_facts(db: sqlite3.Connection, found: Verification) -> None:
    """Every fact and every list of facts against its digest; none that nothing refers to."""
    facts: dict[str, Fact] = {}
    for row in db.execute("SELECT * FROM facts"):
        found.checked["facts"] += 1
        found.attempt(f"fact {_name(row['digest'])}", _verify_fact, row, facts, found)
    for row in db.execute("SELECT * FROM fact_sets").fetchall():
        found.checked["fact sets"] += 1
        found.attempt(f"fact set {_name(row['digest'])}", _verify_fact_set, db, row, facts, found)
    members = "SELECT 1 FROM fact_set_members WHERE fact_digest = facts.digest"
    for row in db.execute(f"SELECT digest FROM facts WHERE NOT EXISTS ({members})"):
        found.report(f"fact {_name(row['digest'])}", "no fact set holds it")
    sets = "SELECT fact_set_digest FROM entries UNION SELECT fact_set_digest FROM fact_set_members"
    for (digest,) in db.execute(f"{sets} EXCEPT SELECT digest FROM fact_sets"):
        found.expect(digest is None, f"fact set {_name(digest)}", "is missing")
    for (digest,) in db.execute("SELECT fact_digest FROM fact_set_members EXCEPT SELECT digest FROM facts"):
        found.report(f"fact {_name(digest)}", "is missing")
    entries = "SELECT 1 FROM entries WHERE fact_set_digest = fact_sets.digest"
    for row in db.execute(f"SELECT digest FROM fact_sets WHERE NOT EXISTS ({entries})"):
        found.report(f"fact set {_name(row['digest'])}", "no entry refers to it")


def _verify_fact(row: sqlite3.Row, facts: dict[str, Fact], found: Verification) -> None:
    fact = Fact.from_json(json.loads(row["content"]))
    facts[row["digest"]] = fact
    said = (row["digest"], row["edit_digest"], row["prompt"], row["target"], row["subject"], row["content"])
    holds = (fact.digest, fact.edit_digest, fact.prompt, fact.target, fact.subject, fact.canonical_json())
    found.expect(said == holds, f"fact {_name(row['digest'])}", "its row was changed")


def _verify_fact_set(db: sqlite3.Connection, row: sqlite3.Row, facts: dict[str, Fact], found: Verification) -> None:
    query = "SELECT position, fact_digest FROM fact_set_members WHERE fact_set_digest = ? ORDER BY position"
    members = db.execute(query, (row["digest"],)).fetchall()
    known = tuple(facts[member["fact_digest"]] for member in members if member["fact_digest"] in facts)
    in_order = [member["position"] for member in members] == list(range(row["size"]))
    whole = in_order and len(known) == len(members) and FactSet(known, source="").digest == row["digest"]
    found.expect(whole, f"fact set {_name(row['digest'])}", "its list of facts was changed")


def _name(digest: object) -> str:
    return short(digest) if isinstance(digest, str) else repr(digest)
