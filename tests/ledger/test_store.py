from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_world import EDITOR, apply, dump, fact, make_world, revert, tiny
from safetensors_folders import EDITED, write_model_folder

from malmen_cli.checkpoint import read_manifest
from malmen_cli.errors import UnknownName, UsageError
from malmen_cli.ledger import NOTHING_ACTIVE, Entry, Ledger, ParameterDelta, register_model, store

A, B, C = fact("a"), fact("b"), fact("c")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    workspace, _ = make_world(tmp_path)
    with Ledger.open(workspace, writing=True) as ledger:
        yield ledger


@pytest.fixture
def entries(ledger: Ledger) -> list[Entry]:
    """Oldest first: register, apply A B, apply C, revert of the apply of A B."""
    apply(ledger, A, B)
    apply(ledger, C)
    with ledger.read() as db:
        first = store.resolve_entry(db, "#2")
    revert(ledger, first)
    with ledger.read() as db:
        return store.entries(db)[::-1]


@pytest.fixture
def db(ledger: Ledger, entries: list[Entry]) -> Iterator[sqlite3.Connection]:
    with ledger.read() as db:
        yield db


def test_entries_come_newest_first(db: sqlite3.Connection, entries: list[Entry]) -> None:
    assert [entry.kind for entry in entries] == ["register", "apply", "apply", "revert"]
    assert [entry.number for entry in entries] == [1, 2, 3, 4]
    assert [entry.parent for entry in entries] == [None, *(entry.id for entry in entries[:-1])]
    assert store.entries(db, limit=2) == entries[:1:-1]
    assert store.entries(db, entries[0].model_id) == entries[::-1]
    assert store.head(db, entries[0].model_id) == entries[-1]
    assert store.entries(db, 99) == []


def test_entries_are_named_in_every_way(db: sqlite3.Connection, entries: list[Entry]) -> None:
    last = entries[-1]
    digits = last.id.removeprefix("sha256:")
    for name in (last.id, digits, digits[:10], digits[:10].upper(), f" {last.id[:20]}", "HEAD", "HEAD~0", "#4"):
        assert store.resolve_entry(db, name) == last
        assert store.resolve_entry(db, name, last.model_id) == last
    assert store.resolve_entry(db, "HEAD~3") == store.resolve_entry(db, "#1") == entries[0]


@pytest.mark.parametrize(
    "name", ["", "abc", "HEAD~9", "HEAD~", "#0", "#9", "head", "*", "????", "sha256:", "0000000", "#" + "9" * 99]
)
def test_names_of_no_entry(db: sqlite3.Connection, name: str) -> None:
    with pytest.raises(UnknownName) as caught:
        store.resolve_entry(db, name)
    assert caught.value.remedy


def test_a_prefix_of_several_names_them(ledger: Ledger, entries: list[Entry]) -> None:
    with ledger.write() as db:
        db.execute("PRAGMA defer_foreign_keys = ON")
        for number, end in ((8, "1"), (9, "2")):
            row = db.execute("SELECT * FROM entries WHERE number = 1").fetchone()
            values = {**row, "id": "sha256:" + "abcd" * 15 + "000" + end, "number": number}
            db.execute(f"INSERT INTO entries VALUES ({', '.join('?' * len(values))})", tuple(values.values()))
        with pytest.raises(UnknownName, match="any of 2"):
            store.resolve_entry(db, "abcd")
        assert store.resolve_entry(db, "abcd" * 15 + "0002").number == 9


def test_head_of_several_models_asks_which(ledger: Ledger, entries: list[Entry], tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "other", seed=1)
    other = register_model(ledger, "other", folder, read_manifest(folder), EDITED, {}).model
    with ledger.read() as db:
        with pytest.raises(UsageError, match="2 models"):
            store.resolve_entry(db, "HEAD")
        assert store.resolve_entry(db, "HEAD", other.id).kind == "register"
        assert store.resolve_entry(db, entries[-1].id) == entries[-1]
        with pytest.raises(UnknownName):
            store.resolve_entry(db, entries[-1].id, other.id)


def test_facts_of_an_entry_in_order(db: sqlite3.Connection, entries: list[Entry]) -> None:
    assert store.facts_of(db, entries[1]) == [A, B]
    assert store.facts_of(db, entries[3]) == [A, B]
    assert store.facts_of(db, entries[0]) == []
    assert store.facts_with(db, [C.digest, "sha256:unknown"]) == {C.digest: C}


def test_states_and_where_an_active_set_was_in_force(
    db: sqlite3.Connection, ledger: Ledger, entries: list[Entry]
) -> None:
    model = tiny(ledger)
    base = {name: model.manifest.tensors[name].digest for name in EDITED}
    assert store.state(db, model.id, 1) == base == store.find_state(db, model.id, NOTHING_ACTIVE)
    assert store.state(db, model.id) == store.state(db, model.id, 4) != store.state(db, model.id, 3)
    for entry in entries:
        assert store.find_state(db, model.id, entry.active_digest) == store.state(db, model.id, entry.number)
    assert store.find_state(db, model.id, "sha256:never") is None


def test_deltas_keep_their_figures(db: sqlite3.Connection, entries: list[Entry]) -> None:
    deltas = store.deltas_of(db, entries[1].id)
    assert [delta.tensor for delta in deltas] == list(EDITED)
    assert {(delta.norm, delta.effective_rank, delta.ridge) for delta in deltas} == {(1.0, None, None)}
    assert store.deltas_of(db, entries[0].id) == []
    assert ParameterDelta("t", "a", "b", norm=float("inf"), ridge=1) == ParameterDelta("t", "a", "b", ridge=1.0)


def test_rows_are_found_by_edit_and_layer(db: sqlite3.Connection, ledger: Ledger, entries: list[Entry]) -> None:
    rows = store.rows_of(db, EDITOR, [B.edit_digest, C.edit_digest, "sha256:unknown"])
    assert set(rows) == set(EDITED)
    for layer in EDITED:
        assert set(rows[layer]) == {B.edit_digest, C.edit_digest}
        assert (rows[layer][B.edit_digest].start, rows[layer][C.edit_digest].start) == (1, 0)
        assert ledger.objects.contains(rows[layer][B.edit_digest].object)
    assert store.rows_of(db, "another", [B.edit_digest]) == {}


def test_many_facts_at_once(db: sqlite3.Connection) -> None:
    assert store.rows_of(db, EDITOR, [A.edit_digest, *map(str, range(50_000))])[EDITED[0]].keys() == {A.edit_digest}


def test_models_and_editors_by_name(db: sqlite3.Connection, ledger: Ledger, tmp_path: Path) -> None:
    model = store.only_model(db)
    assert model == store.model_named(db, "tiny") == store.model_at(db, tmp_path / "model") == tiny(ledger)
    assert model.architecture == {"layers": 3}
    assert store.model_at(db, tmp_path) is None
    editor = store.newest_editor(db, model.id)
    assert editor is not None and editor.config == {"rank": 4} and editor.scores == {"ES": 0.9} and editor.per_fact
    assert store.editor(db, EDITOR[:3]) == editor
    assert store.newest_editor(db, 99) is None
    for name in ("", "x", EDITOR + "1"):
        with pytest.raises(UnknownName):
            store.editor(db, name)
    with pytest.raises(UnknownName):
        store.model_named(db, "x")


def test_reading_never_writes(ledger: Ledger, entries: list[Entry]) -> None:
    before = dump(ledger.workspace)
    with Ledger.open(ledger.workspace) as reader, reader.read() as db:
        for entry in store.entries(db):
            store.facts_of(db, entry)
            store.deltas_of(db, entry.id)
            store.packs_of(db, entry.id)
        store.fold(db, 1)
    assert dump(ledger.workspace) == before
