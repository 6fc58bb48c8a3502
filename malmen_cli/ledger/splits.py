"""Splits: fact files that a workspace knows by a name. The file stays where it is; its digest says when it changed."""

from __future__ import annotations

import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from malmen_cli.checkpoint.digests import digest_file
from malmen_cli.errors import UnknownName, UnsafeFile, UsageError
from malmen_cli.facts import FORMATS, FactFormat, OnConflict, printable, read_fact_set
from malmen_cli.ledger import row_types
from malmen_cli.ledger.connection import check_utf8, insert
from malmen_cli.ledger.database import Ledger
from malmen_cli.ledger.entry_rows import now
from malmen_cli.ledger.registration import check_name

FileStatus = Literal["unchanged", "changed", "missing"]


@dataclass(frozen=True, slots=True)
class Split:
    """A named fact file: its absolute path, how it is read, and what it was when it was added.

    Attributes:
        format: the one format it is in, None where that is detected. on_conflict: which of contradicting records is
            kept, None to refuse them. digest: of its bytes. facts: how many it held. added_at: ISO 8601, UTC.
    """

    name: str
    path: Path
    format: FactFormat | None
    on_conflict: OnConflict | None
    digest: str
    facts: int
    added_at: str

    def status(self) -> FileStatus:
        """How the file stands to what was added; a file that cannot be read counts as missing."""
        try:
            return "unchanged" if digest_file(self.path) == self.digest else "changed"
        except (OSError, UnsafeFile):
            return "missing"


def add_split(
    ledger: Ledger,
    name: str,
    file: Path,
    *,
    format: FactFormat | None = None,
    on_conflict: OnConflict | None = None,
    replace: bool = False,
) -> Split:
    """Name a fact file, which is read whole first: nothing is written for one with a bad line.

    Raises:
        UsageError: a bad name, a taken one without `replace`, an unreadable file. BadFacts: with every bad line.
    """
    check_name(name)
    path = file.parent.resolve() / file.name  # the file itself may be a link that is meant to move
    check_utf8(path)
    if file.exists() and not file.is_file():
        raise UsageError(f"{file} is not a file that can be read again", remedy="Save it to a file, and add that.")
    _refuse_taken(ledger, name, replace)
    facts = read_fact_set(file, format=format, on_conflict=on_conflict)
    split = Split(name, path, format, on_conflict, digest_file(path), len(facts), now())
    with ledger.write() as db:
        if replace:
            db.execute("DELETE FROM splits WHERE name = ?", (name,))
        try:
            insert(db, "splits", **asdict(split) | {"path": str(path)})
        except sqlite3.IntegrityError:  # another process was faster
            raise _taken(name) from None
    return split


def remove_split(ledger: Ledger, name: str) -> Split:
    """Forget a name; the file is left alone. Raises UnknownName."""
    with ledger.write() as db:
        split = split_named(db, name)
        db.execute("DELETE FROM splits WHERE name = ?", (name,))
    return split


def all_splits(db: sqlite3.Connection) -> list[Split]:
    """Every split, by name."""
    return [_split(row) for row in db.execute("SELECT * FROM splits ORDER BY name")]


def split_named(db: sqlite3.Connection, name: str) -> Split:
    """Raises UnknownName, naming the splits that there are."""
    row = db.execute("SELECT * FROM splits WHERE name = ?", (name,)).fetchone()
    if row is None:
        known = ", ".join(split.name for split in all_splits(db))
        shown = printable(name)
        raise UnknownName(
            f"there is no split {shown!r}" + (f"; there are: {known}" if known else ""),
            remedy=f"add it: malmen data add {shown} FILE",
        )
    return _split(row)


def _refuse_taken(ledger: Ledger, name: str, replace: bool) -> None:
    with ledger.read() as db:
        if not replace and db.execute("SELECT 1 FROM splits WHERE name = ?", (name,)).fetchone():
            raise _taken(name)


def _taken(name: str) -> UsageError:
    return UsageError(
        f"there is a split {name} already", remedy="choose another name, or give --replace to let it name this file"
    )


def _split(row: sqlite3.Row) -> Split:
    found = row_types.checked(row, row_types.SPLIT)
    row_types.check_names(found["name"])
    row_types.check_paths(found["path"])
    wrong = found["format"] not in (None, *FORMATS) or found["on_conflict"] not in (None, *get_args(OnConflict))
    if wrong:
        raise row_types.damaged("a split's row cannot be one")
    return Split(**found | {"path": Path(found["path"])})
