"""Creating and upgrading the schema with Alembic; the only place outside migrations/ that loads it or SQLAlchemy."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

import malmen_cli
from malmen_cli.checkpoint.lock import PATIENCE, checkpoint_lock
from malmen_cli.errors import UnusableLedger
from malmen_cli.ledger.connection import connect, explained, schema_revision
from malmen_cli.ledger.workspace import Workspace


def migrations_folder() -> Path:
    """`malmen_cli/_migrations` of an installed wheel, else `migrations/` of the checkout."""
    package = Path(malmen_cli.__file__).parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    return config


def migration_engine(database: Path) -> Engine:
    """An engine whose every transaction is BEGIN IMMEDIATE, DDL included: a half-done migration leaves nothing behind.

    Foreign keys are off, or a batch migration's DROP TABLE would cascade; env.py checks them before each commit.
    """
    engine = create_engine(
        "sqlite://", creator=lambda: connect(database, writing=True, foreign_keys=False), poolclass=NullPool
    )
    event.listen(engine, "begin", _begin_immediate)
    return engine


def upgrade_schema(workspace: Workspace, revision: str = "head", timeout: float = PATIENCE) -> None:
    """Create the ledger or bring it to `revision`; each migration and its record are one transaction.

    Raises UnusableLedger for a damaged database or one of a newer malmen, Locked while another process upgrades it.
    """
    schema_revision(workspace, writing=True)  # says so when a ledger was lost
    engine = migration_engine(workspace.database)
    config = alembic_config()
    config.attributes["connection"] = engine
    try:
        with checkpoint_lock(workspace.root, "upgrade of the ledger", timeout), explained(workspace.database):
            command.upgrade(config, revision)
    except CommandError as error:
        raise UnusableLedger(
            f"{workspace.database}: {error}", remedy="upgrade malmen, which made this ledger"
        ) from error
    except DBAPIError as error:
        with explained(workspace.database):
            raise error.orig or error from error
    finally:
        engine.dispose()


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
