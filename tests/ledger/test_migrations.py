from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from ledger_world import apply as apply_facts
from ledger_world import dump, fact, make_world
from pytest_alembic.tests import (  # noqa: F401  (collected here)
    test_model_definitions_match_ddl,
    test_single_head_revision,
    test_up_down_consistency,
    test_upgrade,
)
from sqlalchemy import Engine, create_engine, inspect

from malmen_cli.errors import UnusableLedger
from malmen_cli.ledger import Ledger, Workspace
from malmen_cli.ledger.connection import BROUGHT, REVISIONS, SCHEMA_REVISION, connect, schema_revision
from malmen_cli.ledger.schema import metadata
from malmen_cli.ledger.schema_upgrade import alembic_config as program_config
from malmen_cli.ledger.schema_upgrade import migration_engine, migrations_folder, upgrade_schema

REFLECTED = ("columns", "pk_constraint", "foreign_keys", "indexes", "unique_constraints", "check_constraints")


@pytest.fixture
def alembic_config() -> Config:
    return program_config()


@pytest.fixture
def alembic_engine(tmp_path: Path) -> Iterator[Engine]:
    engine = migration_engine(tmp_path / "ledger.db")
    yield engine
    engine.dispose()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_the_program_knows_every_revision_its_order_and_its_tables(workspace: Workspace) -> None:
    script = ScriptDirectory.from_config(program_config())
    assert tuple(reversed([step.revision for step in script.walk_revisions()])) == REVISIONS
    assert script.get_current_head() == SCHEMA_REVISION
    known: set[str] = {"alembic_version"}
    for revision, brought in BROUGHT.items():
        known |= set(brought)
        upgrade_schema(workspace, revision)
        assert set(dump(workspace)) == known


def test_migrations_arrive_at_the_schema(workspace: Workspace, tmp_path: Path) -> None:
    upgrade_schema(workspace)
    migrated, declared = migration_engine(workspace.database), create_engine(f"sqlite:///{tmp_path / 'declared.db'}")
    try:
        metadata.create_all(declared)
        with migrated.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        for table in metadata.tables:
            for what in REFLECTED:
                there, here = (getattr(inspect(engine), f"get_{what}")(table) for engine in (migrated, declared))
                assert _plain(there) == _plain(here), (table, what)
    finally:
        migrated.dispose()
        declared.dispose()


def _plain(items: object) -> object:
    """In any order, types and SQL texts as their words."""
    items = items if isinstance(items, list) else [items]
    return sorted(json.dumps(item, default=str, sort_keys=True) for item in items)


def test_a_failing_migration_leaves_nothing(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails after its tables and data are there, in the same transaction."""
    scripts = tmp_path / "migrations"
    (scripts / "versions").mkdir(parents=True)
    for name in ("env.py", "versions/0001_first_ledger.py"):
        (scripts / name).write_text((migrations_folder() / name).read_text())
    (scripts / "versions/0002_broken.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\nrevision = 'broken'\ndown_revision = '0001'\n"
        "def upgrade():\n"
        "    op.create_table('half', sa.Column('id', sa.Integer, primary_key=True))\n"
        "    op.execute(\"UPDATE settings SET value = 'lost'\")\n"
        "    op.execute('SELECT * FROM nowhere')\n"
    )
    monkeypatch.setattr("malmen_cli.ledger.schema_upgrade.migrations_folder", lambda: scripts)
    upgrade_schema(workspace, "0001")
    before = dump(workspace)
    with pytest.raises(UnusableLedger, match="nowhere"):
        upgrade_schema(workspace)
    assert dump(workspace) == before
    assert schema_revision(workspace) == "0001"


def test_a_migration_that_would_leave_dangling_rows_is_undone(tmp_path: Path) -> None:
    workspace, _ = make_world(tmp_path)
    with closing(connect(workspace.database, writing=True, foreign_keys=False)) as db:
        db.execute("UPDATE editors SET model_id = 99")
    before = dump(workspace)
    config = program_config()
    config.attributes["connection"] = migration_engine(workspace.database)
    with pytest.raises(RuntimeError, match="point nowhere"):
        command.stamp(config, "base")
    assert dump(workspace) == before


def test_down_and_up_again_gives_an_empty_ledger_that_works(tmp_path: Path) -> None:
    workspace, _ = make_world(tmp_path)
    with Ledger.open(workspace, writing=True) as ledger:
        apply_facts(ledger, fact("a"))
    config = program_config()
    config.attributes["connection"] = engine = migration_engine(workspace.database)
    command.downgrade(config, "base")
    engine.dispose()
    assert set(dump(workspace)) == {"alembic_version"}
    with pytest.raises(UnusableLedger, match="missing or empty"):  # objects without a ledger are no new workspace
        Ledger.open(workspace, writing=True)
    shutil.rmtree(workspace.objects)
    with Ledger.open(workspace, writing=True) as ledger:
        assert len(ledger.id()) == 32
    assert dump(workspace)["entries"] == []
