"""Reading the ledger: models, editors, entries, facts, states and stored rows. Nothing here writes.

Every function takes a connection from `Ledger.read()` or `write()`, so that one command sees one state of things.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from malmen_cli.checkpoint.digests import ALGORITHM
from malmen_cli.errors import BadFacts, UnknownName, UnusableLedger, UsageError
from malmen_cli.facts import Fact
from malmen_cli.ledger import row_types
from malmen_cli.ledger.active_set import EntryFacts, FactRef
from malmen_cli.ledger.records import (
    FIGURES,
    EditorRecord,
    Entry,
    Kind,
    ModelRecord,
    ParameterDelta,
    RowPack,
    RowSlice,
    RowSpan,
    Status,
)

_KINDS = get_args(Kind)
_DELTA = row_types.delta_types(FIGURES)

# ---------------------------------------------------------------------------------------------------------- models


def models(db: sqlite3.Connection) -> list[ModelRecord]:
    return [model_from(row) for row in db.execute("SELECT * FROM models ORDER BY id")]


def model_named(db: sqlite3.Connection, name: str) -> ModelRecord:
    row = db.execute("SELECT * FROM models WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise UnknownName(f"no model is registered as {name!r}", remedy="see malmen models list")
    return model_from(row)


def model_at(db: sqlite3.Connection, folder: Path) -> ModelRecord | None:
    """The model whose checkpoint lies in `folder`, if one is registered."""
    row = db.execute("SELECT * FROM models WHERE path = ?", (str(folder.resolve()),)).fetchone()
    return None if row is None else model_from(row)


def model_with_id(db: sqlite3.Connection, model_id: int) -> ModelRecord:
    return model_from(
        _single(db.execute("SELECT * FROM models WHERE id = ?", (model_id,)).fetchall(), f"model {model_id}")
    )


def only_model(db: sqlite3.Connection) -> ModelRecord:
    """The model meant when none is named. Raises UsageError unless exactly one is registered."""
    found = models(db)
    if len(found) != 1:
        known = f"{len(found)} models are registered" if found else "no model is registered"
        raise UsageError(known, remedy="name one with --model" if found else "run malmen models add NAME FOLDER")
    return found[0]


# --------------------------------------------------------------------------------------------------------- editors


def editors(db: sqlite3.Connection, model_id: int) -> list[EditorRecord]:
    """The model's editors, newest first."""
    query = "SELECT * FROM editors WHERE model_id = ? ORDER BY rowid DESC"  # a clock may go back
    return [_editor(row) for row in db.execute(query, (model_id,))]


def newest_editor(db: sqlite3.Connection, model_id: int) -> EditorRecord | None:
    return next(iter(editors(db, model_id)), None)


def editor(db: sqlite3.Connection, text: str) -> EditorRecord:
    """The editor with this id, or the only one whose id begins so. Raises UnknownName."""
    query = "SELECT * FROM editors WHERE ?1 <> '' AND substr(id, 1, length(?1)) = ?1"
    rows = db.execute(query, (text,)).fetchall()
    exact = [row for row in rows if row["id"] == text]
    return _editor(_single(exact or rows, f"editor {text!r}"))


# --------------------------------------------------------------------------------------------------------- entries


def entries(db: sqlite3.Connection, model_id: int | None = None, limit: int | None = None) -> list[Entry]:
    """Entries of one model or of all, newest first, a pending one among them."""
    order = "rowid DESC" if model_id is None else "number DESC"  # a clock may go back
    query = f"SELECT * FROM entries WHERE ? IN (model_id, -1) ORDER BY {order} LIMIT ?"
    arguments = (-1 if model_id is None else model_id, -1 if limit is None else limit)
    return [entry_from(row) for row in db.execute(query, arguments)]


def head(db: sqlite3.Connection, model_id: int) -> Entry:
    """The newest applied entry; a registered model has at least its register entry."""
    query = "SELECT * FROM entries WHERE model_id = ? AND status = 'applied' ORDER BY number DESC LIMIT 1"
    row = db.execute(query, (model_id,)).fetchone()
    if row is None:
        raise UnusableLedger("a registered model has no entry", remedy="run malmen verify")
    return entry_from(row)


def pending_entry(db: sqlite3.Connection, model_id: int) -> Entry | None:
    """The entry that a killed command left half done, if any."""
    row = db.execute("SELECT * FROM entries WHERE model_id = ? AND status = 'pending'", (model_id,)).fetchone()
    return None if row is None else entry_from(row)


def resolve_entry(db: sqlite3.Connection, text: str, model_id: int | None = None) -> Entry:
    """The entry that a user names: its id or the first four or more digits of it, `HEAD`, `HEAD^`, `HEAD~2`, `#7`.

    Without `model_id` an id is looked for in all models, and the other forms mean the only model's entries.
    Raises UnknownName for none or several.
    """
    asked = "HEAD~1" if text.strip() == "HEAD^" else text.strip()
    if place := re.fullmatch(r"HEAD(?:~(\d{1,9}))?|#(\d{1,9})", asked):
        if model_id is None:
            model_id = only_model(db).id
        number = int(place[2]) if place[2] else head(db, model_id).number - int(place[1] or 0)
        query = "SELECT * FROM entries WHERE model_id = ? AND number = ?"
        return entry_from(_single(db.execute(query, (model_id, number)).fetchall(), f"entry {text}"))
    prefix = text.strip().lower().removeprefix(f"{ALGORITHM}:")
    if not re.fullmatch(r"[0-9a-f]{4,64}", prefix):
        remedy = "give an id from malmen log (four digits or more), HEAD, HEAD~1 or #7"
        raise UnknownName(f"{text!r} does not name an entry", remedy=remedy)
    query = "SELECT * FROM entries WHERE ? IN (model_id, -1) AND id GLOB ?"
    rows = db.execute(query, (-1 if model_id is None else model_id, f"{ALGORITHM}:{prefix}*")).fetchall()
    if not rows and db.execute("SELECT 1 FROM evaluations WHERE id GLOB ?", (f"{ALGORITHM}:{prefix}*",)).fetchone():
        raise UnknownName(f"{text} is an evaluation, not an entry", remedy=f"show it: malmen eval --show {text}")
    return entry_from(_single(rows, f"entry {text}"))


def deltas_of(db: sqlite3.Connection, entry_id: str) -> list[ParameterDelta]:
    rows = db.execute("SELECT * FROM parameter_deltas WHERE entry_id = ? ORDER BY tensor", (entry_id,))
    return [ParameterDelta(**row_types.checked(row, _DELTA)) for row in rows]


# ----------------------------------------------------------------------------------------------------------- facts


def facts_of(db: sqlite3.Connection, entry: Entry) -> list[Fact]:
    """The facts of an entry in order; of a revert, those it took out of its target."""
    query = (
        "SELECT content FROM fact_set_members JOIN facts ON digest = fact_digest "
        "WHERE fact_set_digest = ? ORDER BY position"
    )
    return [_fact(row["content"]) for row in db.execute(query, (entry.fact_set_digest,))]


def facts_with(db: sqlite3.Connection, fact_digests: Iterable[str]) -> dict[str, Fact]:
    """Facts by digest, of those digests that the ledger knows."""
    query = "SELECT digest, content FROM facts WHERE digest IN (SELECT value FROM json_each(?))"
    rows = db.execute(query, (json.dumps(list(fact_digests)),))
    return {row["digest"]: _fact(row["content"]) for row in rows}


def fold(db: sqlite3.Connection, model_id: int, up_to: int | None = None) -> list[EntryFacts]:
    """The model's applied entries in ledger order (to number `up_to`), as `active_set` takes them."""
    query = (
        "SELECT id, kind, entries.target AS target, fact_digest, edit_digest, prompt FROM entries "
        "LEFT JOIN fact_set_members AS member ON member.fact_set_digest = entries.fact_set_digest "
        "LEFT JOIN facts ON facts.digest = fact_digest "
        "WHERE model_id = ? AND status = 'applied' AND number <= ifnull(?, number) ORDER BY number, position"
    )
    facts: dict[tuple[Any, ...], list[FactRef]] = {}
    for row in db.execute(query, (model_id, up_to)):
        if row["kind"] not in _KINDS:
            raise row_types.damaged("an entry is of no kind that there is")
        of_entry = facts.setdefault(tuple(row_types.checked(row, row_types.FOLD).values()), [])
        if row["fact_digest"] is not None:
            of_entry.append(FactRef(**row_types.checked(row, row_types.FACT_REF)))
    return [EntryFacts(id, kind, tuple(refs), target) for (id, kind, target), refs in facts.items()]


# ---------------------------------------------------------------------------------------------------------- states


def state(db: sqlite3.Connection, model_id: int, up_to: int | None = None) -> dict[str, str]:
    """Digest of every tensor that was ever edited, as it was after entry number `up_to` (now, without it)."""
    query = (
        "SELECT tensor, before, after, number FROM parameter_deltas JOIN entries ON id = entry_id "
        "WHERE model_id = ? AND status = 'applied' ORDER BY number"
    )
    digests: dict[str, str] = {}
    for row in db.execute(query, (model_id,)):
        tensor, before, after, number = row_types.checked(row, row_types.STATE).values()
        digests.setdefault(tensor, before)
        if up_to is None or number <= up_to:
            digests[tensor] = after
    return digests


def numbers_with(db: sqlite3.Connection, model_id: int, active_digest: str) -> Iterator[int]:
    """Numbers of the applied entries that left this very active set in force, the newest first."""
    query = "SELECT number FROM entries WHERE model_id = ? AND active_digest = ? AND status = 'applied'"
    return (row["number"] for row in db.execute(f"{query} ORDER BY number DESC", (model_id, active_digest)))


def base_tensors(db: sqlite3.Connection, model_id: int) -> list[str]:
    """Names of the tensors whose base bytes were stored when the model was registered."""
    names: list[str] = resolve_entry(db, "#1", model_id).details["base_tensors"]
    return names


def find_state(db: sqlite3.Connection, model_id: int, active_digest: str) -> dict[str, str] | None:
    """The state after the newest entry that left this very active set in force; None where none has.

    A state of which gc has dropped a tensor is passed over: it can be solved again from its rows. The empty active set
    is always found: it was in force at registration, and its state is the base, which is never dropped.
    """
    for number in numbers_with(db, model_id, active_digest):
        found = state(db, model_id, number)
        if not dropped_objects(db, found.values()):
            return found
    return None


def dropped_objects(db: sqlite3.Connection, digests: Iterable[str]) -> set[str]:
    """Those of the objects that gc has dropped, on purpose."""
    query = "SELECT digest FROM dropped_objects WHERE digest IN (SELECT value FROM json_each(?))"
    return {row["digest"] for row in db.execute(query, (json.dumps(list(digests)),))}


# ------------------------------------------------------------------------------------------------------------ rows


def rows_of(db: sqlite3.Connection, editor_id: str, edit_digests: Iterable[str]) -> dict[str, dict[str, RowSlice]]:
    """Stored rows by layer and edit digest, of those edits whose rows this editor has captured before."""
    query = (
        "SELECT layer, edit_digest, object, start, count FROM fact_rows JOIN row_packs ON id = pack_id "
        "WHERE editor_id = ? AND edit_digest IN (SELECT value FROM json_each(?))"
    )
    rows: dict[str, dict[str, RowSlice]] = {}
    for row in db.execute(query, (editor_id, json.dumps(list(edit_digests)))):
        layer, edit_digest, object, start, count = row_types.checked(row, row_types.ROWS).values()
        rows.setdefault(layer, {})[edit_digest] = RowSlice(object, start, count)
    return rows


def packs_of(db: sqlite3.Connection, entry_id: str) -> list[RowPack]:
    """The rows that an entry stored."""
    query = (
        "SELECT id, editor_id, layer, object, edit_digest, start, count FROM row_packs "
        "LEFT JOIN fact_rows ON id = pack_id WHERE entry_id = ? ORDER BY layer, start"
    )
    packs: dict[tuple[Any, ...], list[RowSpan]] = {}
    for row in db.execute(query, (entry_id,)):
        spans = packs.setdefault(tuple(row_types.checked(row, row_types.PACK).values()), [])
        if row["edit_digest"] is not None:
            spans.append(RowSpan(**row_types.checked(row, row_types.SPAN)))
    return [RowPack(editor_id, layer, object, tuple(spans)) for (editor_id, layer, object, _), spans in packs.items()]


# --------------------------------------------------------------------------------------------------------- helpers


load_json = row_types.json_object


def _fact(content: object) -> Fact:
    try:
        return Fact.from_json(row_types.json_object(content))
    except BadFacts as error:
        raise row_types.damaged(f"a fact's row cannot be one: {error.problems[0]}") from None


def _single(rows: list[sqlite3.Row], what: str) -> sqlite3.Row:
    if not rows:
        raise UnknownName(f"there is no {what}", remedy="see malmen log and malmen models show")
    if len(rows) > 1:
        candidates = ", ".join(str(row["id"]).removeprefix(f"{ALGORITHM}:")[:16] for row in rows[:5])
        raise UnknownName(f"{what} could be any of {len(rows)}: {candidates}", remedy="give more digits, or --model")
    return rows[0]


def model_from(row: sqlite3.Row) -> ModelRecord:
    found = row_types.checked(row, row_types.MODEL)
    row_types.check_names(found["name"])
    row_types.check_paths(found["path"])
    row_types.check_digests(found["base_digest"])
    return ModelRecord(
        id=found["id"],
        name=found["name"],
        path=Path(found["path"]),
        base_digest=found["base_digest"],
        manifest_json=found["manifest"],
        architecture=row_types.json_object(found["architecture"]),
        created_at=found["created_at"],
    )


def _editor(row: sqlite3.Row) -> EditorRecord:
    found = row_types.checked(row, row_types.EDITOR)
    row_types.check_names(found["id"])
    found["config"] = row_types.json_object(found["config"], row_types.EDITOR_CONFIG)
    found["scores"] = row_types.json_object(found["scores"], row_types.EDITOR_SCORES)
    return EditorRecord(**found | {"per_fact": bool(found["per_fact"])})


def entry_from(row: sqlite3.Row) -> Entry:
    found = row_types.checked(row, row_types.ENTRY)
    if found["kind"] not in get_args(Kind) or found["status"] not in get_args(Status):
        raise row_types.damaged("an entry is of no kind or status that there is")
    row_types.check_names(found["editor_id"])
    row_types.check_digests(*(found[name] for name in ("id", "parent", "target", "fact_set_digest", "active_digest")))
    shape = row_types.REGISTER_DETAILS if found["kind"] == "register" else row_types.DETAILS
    return Entry(**found | {"details": row_types.json_object(found["details"], shape)})
