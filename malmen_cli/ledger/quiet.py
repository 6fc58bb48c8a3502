"""Reading while others write: what a reader reports was so at one moment, or it ends as Locked, never as damage.

The database gives every transaction one view. Files do not: a writer replaces shards, gc removes objects, and an entry
is pending meanwhile. A reader that finds nothing wrong needs no more than that; one that does looks again while writers
are kept out, and only what is wrong then is wrong.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from malmen_cli.checkpoint.lock import is_locked, writers_kept_out
from malmen_cli.errors import Locked, MalmenError
from malmen_cli.ledger import store
from malmen_cli.ledger.database import Ledger
from malmen_cli.ledger.records import ModelRecord
from malmen_cli.ledger.transactions import require_head
from malmen_cli.ledger.verification import Verification
from malmen_cli.ledger.verify import verify_ledger


def verify_when_quiet(
    ledger: Ledger, model: ModelRecord | None = None, *, quick: bool = False, timeout: float = 0
) -> Verification:
    """`verify_ledger`, which reports nothing that another process was only just doing. Writes nothing.

    Problems are looked for once more with the workspace and every checkpoint held against writers, who are refused or
    wait that long. Raises Locked naming a writer that does not finish within `timeout` seconds.
    """
    found = verify_ledger(ledger, model, quick=quick)
    if not found.problems:
        return found
    with writers_kept_out([ledger.workspace.root, *_checkpoints(ledger)], timeout):
        return verify_ledger(ledger, model, quick=quick)


@contextmanager
def reading(ledger: Ledger, model: ModelRecord) -> Iterator[None]:
    """For readers of a checkpoint's weights: it is as the ledger's head says, from here to the end of the body.

    Raises what `require_head` and `unmoved` raise.
    """
    with unmoved(ledger, model):
        require_head(ledger, model)
        yield


@contextmanager
def unmoved(ledger: Ledger, model: ModelRecord, *, checked: bool = False) -> Iterator[None]:
    """For readers of a checkpoint: nobody has written to it when the body ends.

    Takes no lock: a writer that comes meanwhile is not kept waiting, and the reader has to read again. Raises Locked
    then, also in place of what the body raises; only so where the body has `checked` what it read, digest by digest.
    """
    before = _place(ledger, model)
    try:
        yield
    except Locked:
        raise
    except MalmenError as error:
        if _has_moved(ledger, model, before):
            raise _moved(model) from error
        raise
    if not checked and _has_moved(ledger, model, before):
        raise _moved(model)


def _has_moved(ledger: Ledger, model: ModelRecord, before: tuple[str, str | None]) -> bool:
    """An entry's weights are written only while it is pending, and then it is the head."""
    now = _place(ledger, model)
    return now != before or (now[1] is not None and is_locked(model.path))


def _moved(model: ModelRecord) -> Locked:
    message = f"another process has written to {model.path} while this command read it"
    return Locked(message, remedy="run the command again when it has finished")


def _place(ledger: Ledger, model: ModelRecord) -> tuple[str, str | None]:
    """Ids of the head and of the pending entry."""
    with ledger.read() as db:
        pending = store.pending_entry(db, model.id)
        return store.head(db, model.id).id, None if pending is None else pending.id


def _checkpoints(ledger: Ledger) -> list[Path]:
    """Folders of the registered models, of those rows that can be read."""
    with suppress(MalmenError, sqlite3.Error), ledger.read() as db:
        rows = db.execute("SELECT path FROM models WHERE typeof(path) = 'text'").fetchall()
        return [Path(row[0]) for row in rows if "\0" not in row[0]]
    return []
