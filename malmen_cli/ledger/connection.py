"""Connections to the ledger's SQLite database: every safety on, its schema's revision, its failures in words.

Queries run on the standard library's sqlite3: importing SQLAlchemy takes longer than `malmen log` may take altogether.
"""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from malmen_cli.checkpoint.durable import fsync_folder, in_words
from malmen_cli.errors import Locked, MalmenError, UnknownName, UnusableLedger, UsageError
from malmen_cli.ledger.objects import ObjectStore
from malmen_cli.ledger.workspace import Workspace

# Revisions of the schema, oldest first, as in migrations/versions, with the tables that each brought.
BROUGHT = {
    "0001": (
        "settings",
        "models",
        "editors",
        "facts",
        "fact_sets",
        "fact_set_members",
        "entries",
        "parameter_deltas",
        "row_packs",
        "fact_rows",
    ),
    "0002": ("splits", "dropped_objects"),
    "0003": ("seals",),
    "0004": ("evaluations", "evaluation_results"),
}
REVISIONS = tuple(BROUGHT)
SCHEMA_REVISION = REVISIONS[-1]
BUSY_TIMEOUT = 30.0  # seconds to wait for another process's transaction

_PLAIN = re.compile(r"CREATE (TABLE|(UNIQUE )?INDEX) ", re.IGNORECASE)
_RESTORE = "restore ledger.db from a backup"


def connect(database: Path, *, writing: bool, foreign_keys: bool = True) -> sqlite3.Connection:
    """A connection in autocommit mode (transactions are begun in words), with every safety of SQLite on.

    Reading connections cannot write, not even by mistake. Raises UnusableLedger for what is not a sound database.
    """
    check_utf8(database)
    for path in (database, *(database.with_name(database.name + suffix) for suffix in ("-wal", "-shm", "-journal"))):
        # SQLite would wait for a pipe's other end, and write wherever a link leads.
        with suppress(FileNotFoundError):  # the last connection of another process takes SQLite's own files with it
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode):
                what = "a link" if stat.S_ISLNK(mode) else "not a file"
                raise UnusableLedger(f"{path} is {what}", remedy="restore it from a backup")
    if writing and database.exists() and not os.access(database, os.W_OK):  # SQLite would say so at its first write
        remedy = "give yourself write permission on it, or work on a copy of the workspace"
        raise MalmenError(f"cannot use {database}: it may not be written", remedy=remedy)
    opening = "rwc" if writing else _reading_mode(database)
    with explained(database):
        connection = sqlite3.connect(
            f"file:{quote(str(database))}?mode={opening}", uri=True, isolation_level=None, timeout=BUSY_TIMEOUT
        )
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
            connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
            if writing:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                _sync_log(database)
            else:
                connection.execute("PRAGMA query_only = ON")
        except BaseException:
            connection.close()
            raise
    return connection


def schema_revision(workspace: Workspace, *, writing: bool = False) -> str | None:
    """The revision Alembic has recorded, read without loading Alembic; None for a workspace that has no ledger yet.

    A workspace with objects had a ledger: raises UnusableLedger rather than let an empty one take its place. So it does
    for a trigger or a view, and for other tables than those of the revision, whatever that is.
    """
    if workspace.database.exists():
        if writing:
            _roll_back(workspace.database)
        connection = connect(workspace.database, writing=False)
        try:
            with explained(workspace.database):
                revision = _revision(workspace.database, connection)
        finally:
            connection.close()
        if revision is not None:
            return revision
    if next(iter(ObjectStore(workspace.objects)), None) is not None:
        message = f"{workspace.root} holds objects, but its ledger.db is missing or empty"
        raise UnusableLedger(message, remedy=_RESTORE)
    return None


def _revision(database: Path, connection: sqlite3.Connection) -> str | None:
    """Raises UnusableLedger for what no malmen has made."""
    connection.execute("BEGIN")  # one view of all that follows: another process may be upgrading just now
    _refuse_strange_schema(database, connection)
    query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT GLOB 'sqlite_stat[0-9]'"
    tables = {row[0] for row in connection.execute(query)}  # but for what ANALYZE notes for SQLite's own use
    query = "SELECT version_num FROM alembic_version"
    revisions = [row[0] for row in connection.execute(query)] if "alembic_version" in tables else []
    revision = revisions[0] if revisions else None
    if revision is None or revision in REVISIONS:
        made = REVISIONS[: 0 if revision is None else REVISIONS.index(revision) + 1]
        expected = {table for step in made for table in BROUGHT[step]}
        if tables - {"alembic_version"} != expected:
            message = f"{database} does not hold the tables of its schema's revision ({revision})"
            raise UnusableLedger(message, remedy=_RESTORE)
    return None if revision is None else str(revision)


def _refuse_strange_schema(database: Path, connection: sqlite3.Connection) -> None:
    """Tables and indexes are all there is. A stranger's trigger or view would act whenever malmen reads or writes.

    SQLite goes by the statement and not by the type beside it; so does this.
    """
    for kind, name, sql in connection.execute("SELECT type, name, sql FROM sqlite_master"):
        if kind not in ("table", "index") or not (sql is None or _PLAIN.match(str(sql))):
            message = f"{database} holds something that malmen did not make: {kind!a} {name!a}"
            raise UnusableLedger(message, remedy=_RESTORE)


@contextmanager
def explained(database: Path) -> Iterator[None]:
    """Turn SQLite's errors into malmen's; IntegrityError passes, it belongs to whoever wrote the statement."""
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except UnicodeDecodeError as error:  # of the schema or of an error's own words; of a cell it is an sqlite3.Error
        remedy = "run malmen verify; restore the workspace from a backup if it is damaged"
        raise UnusableLedger(f"{database} is damaged: it holds text that is not UTF-8", remedy=remedy) from error
    except UnicodeEncodeError as error:
        message = f"{error.object!a} is not UTF-8, and names nothing in the ledger"
        raise UnknownName(message, remedy="see malmen models show, malmen log and malmen data list") from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if code == sqlite3.SQLITE_READONLY_ROLLBACK:
            message = f"the making of {database} was interrupted"
            raise MalmenError(message, remedy="run malmen init there: it makes it whole") from error
        code &= 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            message = f"{database} is busy with another process's transaction"
            raise Locked(message, remedy="run the command again") from error
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
            remedy = "check the disk's free space and health and the folder's permissions, then run the command again"
            raise MalmenError(f"cannot use {database}: {error}", remedy=remedy) from error
        remedy = "run malmen verify; restore the workspace from a backup if it is damaged"
        raise UnusableLedger(f"{database} is damaged: {error}", remedy=remedy) from error


def check_utf8(path: Path) -> None:
    """SQLite takes text only. Raises UsageError."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{str(path)!a} is not UTF-8", remedy="rename it") from error


def insert(db: sqlite3.Connection, table: str, **values: object) -> int:
    """Insert one row and return its rowid. Table and column names are this program's own, values are bound."""
    columns, marks = ", ".join(values), ", ".join("?" * len(values))
    cursor = db.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", tuple(values.values()))
    return int(cursor.lastrowid or 0)


def _sync_log(database: Path) -> None:
    """Make durable what a killed process has committed without reaching its sync: a writer builds upon it."""
    log = database.with_name(database.name + "-wal")
    with in_words(log), suppress(FileNotFoundError):  # gone: the last connection has closed, and synced the database
        descriptor = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size:
                os.fsync(descriptor)
                fsync_folder(database.parent)
        finally:
            os.close(descriptor)


def _roll_back(database: Path) -> None:
    """Have SQLite undo what a rollback journal says: a reading connection may not, and refuses to read.

    Ledgers have a log in its place (WAL), so only the making of one, killed at its first steps, leaves a journal.
    """
    if database.with_name(database.name + "-journal").exists():
        with explained(database):
            connection = sqlite3.connect(f"file:{quote(str(database))}?mode=rw", uri=True, timeout=BUSY_TIMEOUT)
            try:
                connection.execute("SELECT 1 FROM sqlite_master").fetchone()
            finally:
                connection.close()


def _reading_mode(database: Path) -> str:
    """`ro`; in a folder that cannot be written, where SQLite could not share its index of the log, also immutable."""
    log = database.with_name(database.name + "-wal")
    if os.access(database.parent, os.W_OK) or (log.exists() and log.stat().st_size):
        return "ro"
    return "ro&immutable=1"
