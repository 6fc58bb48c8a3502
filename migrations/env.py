"""Alembic's environment: migrations run on the engine that the program (or a test) hands over, one transaction each."""

from __future__ import annotations

from typing import Any

from alembic import context
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine

from malmen_cli.ledger import seals
from malmen_cli.ledger.schema import metadata


def check_foreign_keys(ctx: MigrationContext, **_: Any) -> None:
    """Runs inside each migration's transaction: rows that point nowhere undo the migration."""
    connection = ctx.connection
    if connection is not None and (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()):
        raise RuntimeError(f"the migration would leave {len(broken)} rows that point nowhere, it was undone")


def seal(ctx: MigrationContext, **_: Any) -> None:
    """Runs inside each migration's transaction, after its revision is recorded: the schema is sealed too."""
    connection = None if ctx.connection is None else ctx.connection.connection.driver_connection
    if connection is not None and connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'seals'").fetchone():
        seals.seal_all(connection)


def migrate(engine: Engine) -> None:
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=metadata,
            transactional_ddl=True,
            transaction_per_migration=True,
            render_as_batch=True,
            on_version_apply=(check_foreign_keys, seal),
        )
        with context.begin_transaction():
            context.run_migrations()


migrate(context.config.attributes["connection"])
