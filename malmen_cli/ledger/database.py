"""The ledger's database: making a workspace's, opening it, its transactions.

SQLAlchemy and Alembic own the schema (schema.py, migrations/) and are loaded only to create or upgrade it.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from malmen_cli.checkpoint.durable import fsync_folder
from malmen_cli.checkpoint.lock import PATIENCE, checkpoint_lock
from malmen_cli.errors import OutdatedLedger, UnusableLedger, UsageError
from malmen_cli.ledger import seals
from malmen_cli.ledger.connection import REVISIONS, SCHEMA_REVISION, check_utf8, connect, explained, schema_revision
from malmen_cli.ledger.objects import ObjectStore
from malmen_cli.ledger.workspace import FOLDER, Workspace, check_owner


def create_workspace(folder: Path, timeout: float = PATIENCE) -> Workspace:
    """Make `folder/.malmen` with a ledger of the current schema, or bring the one that is there up to date.

    Raises UsageError where that cannot be, and makes nothing then.
    """
    from malmen_cli.ledger.schema_upgrade import upgrade_schema

    workspace = Workspace(folder.resolve() / FOLDER)
    check_utf8(workspace.root.parent)  # a .malmen that was left without a ledger would hide the workspace further up
    if workspace.root.exists():
        check_owner(workspace)
    try:
        workspace.root.mkdir(mode=0o700, exist_ok=True)
        for part in (workspace.objects, workspace.editors, workspace.training, workspace.checkpoints):
            part.mkdir(exist_ok=True)
        fsync_folder(workspace.root.parent)
        fsync_folder(workspace.root)
    except OSError as error:
        remedy = "choose a folder that exists and that you may write in"
        raise UsageError(f"cannot make a workspace in {folder}: {error.strerror}", remedy=remedy) from error
    upgrade_schema(workspace, timeout=timeout)
    return workspace


class Ledger:
    """An open ledger: `read()` and `write()` give transactions, `objects` the blobs. Close it, or use `with`."""

    def __init__(self, workspace: Workspace, connection: sqlite3.Connection, *, writing: bool) -> None:
        self.workspace = workspace
        self.objects = ObjectStore(workspace.objects)
        self.writable = writing
        self._held = False
        self._connection = connection

    @classmethod
    def open(cls, workspace: Workspace, *, writing: bool = False) -> Ledger:
        """Open the ledger of a workspace.

        A writing open creates or upgrades the schema. A reading open changes nothing and raises UnusableLedger where
        that would be needed; so does either for a damaged database or one of a newer malmen.
        """
        revision = schema_revision(workspace, writing=writing)
        if revision is not None and revision not in REVISIONS:
            raise UnusableLedger(f"{workspace.database} was made by a newer malmen", remedy="upgrade malmen")
        if revision != SCHEMA_REVISION:
            if not writing:
                state = "has no ledger yet" if revision is None else f"has the older schema {revision}"
                raise OutdatedLedger(
                    f"{workspace.root} {state}", remedy="run malmen init there: it makes or upgrades it"
                )
            from malmen_cli.ledger.schema_upgrade import upgrade_schema

            upgrade_schema(workspace)
        return cls(workspace, connect(workspace.database, writing=writing), writing=writing)

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """One consistent view of the ledger. Inside an open transaction of this ledger it is that transaction's."""
        if self._connection.in_transaction:
            yield self._connection
        else:
            with self._transaction("BEGIN"):
                yield self._connection

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the database's only write lock from its first statement on; all or nothing.

        It ends with the seals of what it changed; one that was broken before it stays broken.
        """
        if not self.writable or self._connection.in_transaction:
            raise RuntimeError("a writing transaction needs a ledger opened for writing, and none around it")
        with self._transaction("BEGIN IMMEDIATE"):
            before, changes = seals.read(self._connection), self._connection.total_changes
            yield self._connection
            if self._connection.total_changes != changes:
                seals.renew(self._connection, before)

    @contextmanager
    def hold(self, command: str, timeout: float = math.inf) -> Iterator[None]:
        """Keep gc out of the workspace while files are put in place that no row names yet. May be nested.

        Raises Locked where another process holds it for longer than `timeout` seconds.
        """
        if self._held:
            yield
            return
        with checkpoint_lock(self.workspace.root, command, timeout):
            self._held = True
            try:
                yield
            finally:
                self._held = False

    def id(self) -> str:
        """The ledger's own name, given when it was made: tells it from others that edit the same checkpoint."""
        with self.read() as db:
            return str(db.execute("SELECT value FROM settings WHERE key = 'ledger_id'").fetchone()[0])

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        with explained(self.workspace.database):
            self._connection.execute(begin)
            try:
                yield
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
