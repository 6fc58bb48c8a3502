from __future__ import annotations

import random
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from ledger_world import dump, make_world

from malmen_cli.errors import MalmenError, UnusableLedger
from malmen_cli.ledger import Ledger, Workspace, create_workspace, store
from malmen_cli.ledger.connection import connect, insert

DAMAGED_RANGES = ((16, 100), (4096, 80_000))  # the database's header; the pages after the first
NUMBERS = "FROM settings WHERE key LIKE 'n%'"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return create_workspace(tmp_path)


def test_every_safety_of_sqlite_is_on(workspace: Workspace) -> None:
    with Ledger.open(workspace, writing=True) as ledger, ledger.write() as db:
        pragmas = {name: db.execute(f"PRAGMA {name}").fetchone()[0] for name in
                   ("journal_mode", "synchronous", "foreign_keys", "trusted_schema")}  # fmt: skip
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "trusted_schema": 0}


def test_a_transaction_is_all_or_nothing(workspace: Workspace) -> None:
    before = dump(workspace)
    with Ledger.open(workspace, writing=True) as ledger:
        with pytest.raises(ZeroDivisionError), ledger.write() as db:
            insert(db, "settings", key="a", value="1")
            raise ZeroDivisionError
        assert dump(workspace) == before
        with ledger.write() as db:
            insert(db, "settings", key="a", value="1")
    assert dump(workspace) != before


def test_a_reading_ledger_cannot_write(workspace: Workspace) -> None:
    before = dump(workspace)
    with Ledger.open(workspace) as ledger:
        with pytest.raises(RuntimeError), ledger.write():
            pass
        with pytest.raises(MalmenError), ledger.read() as db:
            insert(db, "settings", key="a", value="1")
    assert dump(workspace) == before


def test_a_read_sees_one_state_of_things(workspace: Workspace) -> None:
    with Ledger.open(workspace) as reader, Ledger.open(workspace, writing=True) as writer, reader.read() as db:
        count = "SELECT count(*) FROM settings"
        first = db.execute(count).fetchone()[0]
        with writer.write() as other:
            insert(other, "settings", key="a", value="1")
        with reader.read() as inner:
            assert inner.execute(count).fetchone()[0] == first


def test_writers_wait_for_each_other_and_lose_nothing(workspace: Workspace) -> None:
    def work(name: int) -> None:
        with Ledger.open(workspace, writing=True) as ledger:
            for _ in range(25):
                with ledger.write() as db:
                    value = 1 + db.execute(f"SELECT ifnull(max(cast(value AS INTEGER)), 0) {NUMBERS}").fetchone()[0]
                    insert(db, "settings", key=f"n{name}.{value}", value=str(value))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    with closing(connect(workspace.database, writing=False)) as db:
        values = [int(row[0]) for row in db.execute(f"SELECT value {NUMBERS}")]
    assert sorted(values) == list(range(1, 101))


class TestOpening:
    def test_without_a_ledger(self, tmp_path: Path) -> None:
        with pytest.raises(UnusableLedger) as caught:
            Ledger.open(Workspace(tmp_path))
        assert "malmen init" in str(caught.value.remedy)
        assert list(tmp_path.iterdir()) == []
        with Ledger.open(Workspace(tmp_path), writing=True) as ledger, ledger.read() as db:
            assert store.models(db) == []

    def test_of_a_newer_malmen(self, workspace: Workspace) -> None:
        with closing(connect(workspace.database, writing=True)) as db:
            db.execute("UPDATE alembic_version SET version_num = '9999'")
        for writing in (False, True):
            with pytest.raises(UnusableLedger, match="newer malmen"):
                Ledger.open(workspace, writing=writing)
        with pytest.raises(UnusableLedger):
            create_workspace(workspace.root.parent)

    def test_of_an_older_schema(self, workspace: Workspace) -> None:
        """An empty database with Alembic's table: what a kill before the first migration leaves."""
        with closing(connect(workspace.database, writing=True, foreign_keys=False)) as db:
            for name in dump(workspace):
                db.execute(f"DROP TABLE {name}" if name != "alembic_version" else f"DELETE FROM {name}")
        with pytest.raises(UnusableLedger):
            Ledger.open(workspace)
        with Ledger.open(workspace, writing=True) as ledger:
            assert ledger.id()

    @pytest.mark.parametrize("writing", [False, True])
    def test_damaged(self, tmp_path: Path, writing: bool) -> None:
        workspace, _ = make_world(tmp_path)
        with closing(connect(workspace.database, writing=True)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sound, chance = workspace.database.read_bytes(), random.Random(7)
        damages = [b"not a database" * 99, b"x", sound[:100], sound[:5000]]
        damages += [sound[:start] + chance.randbytes(stop - start) + sound[stop:] for start, stop in DAMAGED_RANGES]
        for damage in damages:
            workspace.database.write_bytes(damage)
            with pytest.raises(MalmenError), Ledger.open(workspace, writing=writing) as ledger, ledger.read() as db:
                store.models(db)
                db.execute("SELECT count(*) FROM entries, facts, models, row_packs").fetchall()
                pytest.fail("the damage was not noticed")

    @pytest.mark.parametrize("lost", [None, b"", b"x"])
    def test_a_lost_database_is_never_replaced_by_an_empty_one(self, tmp_path: Path, lost: bytes | None) -> None:
        workspace, _ = make_world(tmp_path)
        workspace.database.unlink()
        if lost is not None:
            workspace.database.write_bytes(lost)
        for writing in (False, True):
            with pytest.raises(UnusableLedger, match="missing or empty"):
                Ledger.open(workspace, writing=writing)
        with pytest.raises(UnusableLedger, match="missing or empty"):
            create_workspace(tmp_path)

    def test_where_nothing_can_be_written(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.access", lambda *_: False)
        before = sorted(workspace.root.iterdir())
        with Ledger.open(workspace) as ledger, ledger.read() as db:
            assert store.models(db) == []
        assert sorted(workspace.root.iterdir()) == before


def test_integrity_errors_are_the_writers_own(workspace: Workspace) -> None:
    with Ledger.open(workspace, writing=True) as ledger, pytest.raises(sqlite3.IntegrityError), ledger.write() as db:
        insert(db, "settings", key="ledger_id", value="again")
