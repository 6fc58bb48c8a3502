"""R9: a ledger of every schema revision ever committed, made by the code of its day, kept as `ledger_REVISION.sql`.

Only the databases are kept. What they say must hold together; the files that they speak of are not there.
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from figures import Figures
from kept_ledgers import HERE
from ledger_world import dump, fact, refs

from malmen_cli.errors import OutdatedLedger
from malmen_cli.facts import FactSet
from malmen_cli.ledger import EntryFacts, Ledger, Workspace, active_digest, active_facts, seals, store, verify_ledger
from malmen_cli.ledger.connection import BROUGHT, REVISIONS, SCHEMA_REVISION, connect, schema_revision
from malmen_cli.ledger.entry_rows import insert_entry, mark_applied
from malmen_cli.ledger.schema_upgrade import alembic_config, migration_engine, upgrade_schema

KEPT = {path.stem.removeprefix("ledger_"): path for path in sorted(HERE.glob("ledger_*.sql"))}
ABSENT = re.compile(
    r"object [0-9a-f]{10}: is missing|editor .*does not hold an editor|checkpoint .* (missing|cannot be read|gone)"
)
TABLE = "R9: migrations, with a ledger of every revision"

# Rows that a ledger takes at each revision, besides those that are kept.
MORE = {
    "0001": ["INSERT INTO settings VALUES ('more', 'yes')",
             "INSERT INTO facts VALUES ('d', 'e', 'p', 't', NULL, '{}')"],
    "0002": ["INSERT INTO splits VALUES ('more', '/facts.json', NULL, NULL, 'sha256:0', 7, 'now')",
             "INSERT INTO dropped_objects VALUES ('sha256:0', 'now')"],
    "0003": [],  # seals, which are made anew of the rows above
    "0004": ["INSERT INTO evaluations VALUES ('sha256:e', 1, NULL, NULL, NULL, '', 1, '', 'now', '', '{}')",
             "INSERT INTO evaluation_results VALUES ('sha256:e', 0, 'sha256:f', '{}')"],
}  # fmt: skip


@pytest.fixture(params=KEPT)
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path)
    with closing(sqlite3.connect(workspace.database)) as db:
        db.executescript(KEPT[request.param].read_text("utf-8"))
    assert schema_revision(workspace) == request.param
    return workspace


def migrate(workspace: Workspace, revision: str) -> None:
    """Up or down, whichever it is."""
    config = alembic_config()
    config.attributes["connection"] = engine = migration_engine(workspace.database)
    now = schema_revision(workspace)
    step = command.upgrade if now is None or REVISIONS.index(revision) >= REVISIONS.index(now) else command.downgrade
    step(config, revision)
    engine.dispose()


def data(workspace: Workspace, *revisions: str) -> dict[str, object]:
    """Rows of the tables that all of these revisions have; seals are made anew by every migration."""
    least = REVISIONS[: min(map(REVISIONS.index, revisions)) + 1]
    rows = dump(workspace)
    return {table: rows[table] for revision in least for table in BROUGHT[revision] if table != "seals"}


def said(ledger: Ledger) -> list[str]:
    """What verify finds, but for files that are not there."""
    return [line for line in map(str, verify_ledger(ledger).problems) if not ABSENT.match(line)]


def test_every_revision_has_a_kept_ledger() -> None:
    """Made once, when the revision was added: `PYTHONPATH=.:tests python tests/ledger/kept_ledgers.py`."""
    assert tuple(KEPT) == REVISIONS == tuple(MORE)


def test_readers_refuse_an_older_one_in_words_and_a_writer_upgrades_it(kept: Workspace) -> None:
    revision, before = schema_revision(kept), data(kept, *REVISIONS[:1])
    if revision != SCHEMA_REVISION:
        with pytest.raises(OutdatedLedger, match=f"older schema {revision}"):
            Ledger.open(kept)
    with Ledger.open(kept, writing=True) as ledger:
        assert data(kept, *REVISIONS[:1]) == before
        assert said(ledger) == []


def test_entries_follow_in_it(kept: Workspace) -> None:
    """The chain goes on from entries of another day, and is sound."""
    with Ledger.open(kept, writing=True) as ledger:
        for number in range(2):
            with ledger.write() as db:
                model = store.model_named(db, "tiny")
                fact_set, head = FactSet((fact(f"new {number}"),), source="facts.jsonl"), store.head(db, model.id)
                fold = [*store.fold(db, model.id), EntryFacts("", "apply", refs(fact_set.facts))]
                active = active_digest(head.editor_id, active_facts(fold))
                entry = insert_entry(
                    db, model, kind="apply", active_digest=active, fact_set=fact_set, editor_id=head.editor_id
                )
                mark_applied(db, entry)
            assert (entry.parent, entry.number) == (head.id, head.number + 1)
            assert said(ledger) == []


def test_round_trips_lose_nothing(kept: Workspace, figures: Figures) -> None:
    """To every other revision, rows added there, back, and there again: what both revisions know stays as it was."""
    own = schema_revision(kept)
    assert own is not None
    sound = kept.database.read_bytes()
    trips = bad = 0
    for other in REVISIONS:
        kept.database.write_bytes(sound)
        migrate(kept, other)
        with closing(connect(kept.database, writing=True, foreign_keys=False)) as db:
            for revision in REVISIONS[: REVISIONS.index(other) + 1]:
                for statement in MORE[revision]:
                    db.execute(statement)
            if "seals" in dump(kept):  # an upgrade refuses rows that are not as malmen left them
                seals.seal_all(db)
        there = data(kept, other)
        for _ in range(2):
            migrate(kept, own)
            trips += 1
            bad += data(kept, own, other) != {
                table: rows for table, rows in there.items() if table in data(kept, own, other)
            }
            migrate(kept, other)
            bad += data(kept, own, other) != {
                table: rows for table, rows in there.items() if table in data(kept, own, other)
            }
            with closing(connect(kept.database, writing=False)) as db:
                bad += db.execute("PRAGMA integrity_check").fetchall()[0][0] != "ok"
                bad += db.execute("PRAGMA foreign_key_check").fetchone() is not None
    figures(TABLE, tried=f"round trips from {own} to each revision, twice", points=trips, bad=bad)
    assert bad == 0


def test_killed_before_every_statement_of_an_upgrade(kept: Workspace, full: bool, figures: Figures) -> None:
    """The ledger is then of the old revision or of a later one, whole, and the next command upgrades it.

    Every third statement without --full.
    """
    revision, before = schema_revision(kept), data(kept, *REVISIONS[:1])
    saved = kept.database.read_bytes()
    number = points = bad = 0
    killed = True
    while killed:
        number += 1 if full else 3
        points += 1
        kept.database.write_bytes(saved)
        for end in ("-wal", "-shm"):
            kept.database.with_name(f"ledger.db{end}").unlink(missing_ok=True)
        killed = _killed_upgrade(kept, number)
        found = schema_revision(kept)
        bad += found is None or revision is None or found < revision or data(kept, *REVISIONS[:1]) != before
        with Ledger.open(kept, writing=True) as ledger:
            bad += said(ledger) != [] or data(kept, *REVISIONS[:1]) != before
    figures(TABLE, tried=f"upgrade from {revision}, killed before each statement", points=points - 1, bad=bad)
    assert bad == 0
    assert revision == SCHEMA_REVISION or points > 5


def _killed_upgrade(workspace: Workspace, number: int) -> bool:
    child = os.fork()
    if child == 0:
        try:
            pytest.MonkeyPatch().setattr("malmen_cli.ledger.schema_upgrade.connect", _killing(number))
            upgrade_schema(workspace)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def _killing(number: int) -> Callable[..., sqlite3.Connection]:
    made: list[str] = []

    def statement(text: str) -> None:
        made.append(text)
        if len(made) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def traced(*arguments: object, **options: object) -> sqlite3.Connection:
        connection = connect(*arguments, **options)  # type: ignore[arg-type]
        connection.set_trace_callback(statement)
        return connection

    return traced
