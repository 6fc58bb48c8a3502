"""A ledger of every schema revision ever committed is kept as `ledger_REVISION.sql`; this makes the newest one's.

    PYTHONPATH=.:tests python tests/ledger/kept_ledgers.py

Run it once, when a revision has been added, and never again: what is kept must come from the code of its day.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from rich_world import rich_world

from malmen_cli.ledger import Ledger
from malmen_cli.ledger.connection import SCHEMA_REVISION

HERE = Path(__file__).parent


def make_kept_ledger() -> Path:
    """Write the ledger of today's revision, with paths that are nobody's; returns the file."""
    with TemporaryDirectory() as folder:
        workspace = rich_world(Path(folder))
        with Ledger.open(workspace, writing=True) as ledger, ledger.write() as db:
            for table in ("models", "splits"):
                db.execute(f"UPDATE {table} SET path = replace(path, ?, '/world')", (folder,))
        with closing(sqlite3.connect(workspace.database)) as db:
            text = "\n".join(db.iterdump())
    file = HERE / f"ledger_{SCHEMA_REVISION}.sql"
    file.write_text(text + "\n", "utf-8")
    return file


if __name__ == "__main__":
    print(make_kept_ledger())
