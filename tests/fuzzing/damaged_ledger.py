"""A sound ledger's database, damaged in every way there is, under every verb that reads.

A stranger may have written every byte of it: pages are overwritten as a failing disk would, and rows as somebody with a
SQLite shell would, values of other types among them, which SQLite keeps in any column.
"""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import sys
from contextlib import closing, redirect_stderr, redirect_stdout
from random import Random

from fuzz_mutations import replaced, value
from fuzz_targets import check_words, require, scratch
from ledger_world import EDITOR, apply, fact, revert
from safetensors_folders import EDITED, file_digests, safetensors_bytes, write_model_folder

from malmen_cli.checkpoint import read_manifest
from malmen_cli.cli import main
from malmen_cli.errors import ExitCode
from malmen_cli.ledger import Ledger, add_editor, add_split, create_workspace, register_model
from malmen_cli.ledger.training_runs import write_note

READING: tuple[tuple[str, ...], ...] = (
    ("log",),
    ("log", "--json"),
    ("show",),
    ("show", "#2", "--json"),
    ("verify",),
    ("diff", "base", "HEAD"),
    ("diff", "HEAD~1", "checkpoint", "--json"),
    ("plan", "FACTS", "--quick", "-q"),
    ("models", "list"),
    ("models", "show"),
    ("models", "show", "--json"),
    ("data", "list"),
    ("data", "list", "--json"),
    ("gc", "--leftovers", "--training", "--states", "--editors", "--dry-run"),
    ("export", "--output", "EXPORT", "--as", "delta"),
)  # fmt: skip
"""Verbs that write nothing into the workspace or the checkpoint."""

_TABLES = (
    "alembic_version",
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
    "splits",
    "dropped_objects",
)


LAYERS = [
    {"name": name.removesuffix(".weight"), "tensor": name, "transposed": False, "d_in": 6, "d_out": 4}
    for name in EDITED
]
ARCHITECTURE = {"model_type": "tiny", "task": "causal", "dtype": "F32", "layers": LAYERS}
CONFIG = {"layers": LAYERS, "config": {"facts_per_step": 1, "sample_size": True}}
SCORES = {"scores": {"1": {"ES": 1.0, "GS": 0.5, "LS": None}, "8": {"ES": 1.0, "GS": 0.5, "LS": 0.5}}, "summary": 0.5}


class DamagedLedger:
    """A workspace in memory whose database is put in place anew for every input."""

    def __init__(self) -> None:
        self.folder = scratch() / f"damaged-{len(list(scratch().iterdir()))}"
        checkpoint, workspace = write_model_folder(self.folder / "model"), create_workspace(self.folder)
        with Ledger.open(workspace, writing=True) as ledger:
            manifest = read_manifest(checkpoint)
            model = register_model(ledger, "tiny", checkpoint, manifest, EDITED, ARCHITECTURE).model
            home = workspace.editors / EDITOR
            home.mkdir()
            (home / "editor.safetensors").write_bytes(safetensors_bytes({}))
            (home / "editor.json").write_text("{}")
            add_editor(ledger, model, EDITOR, config=CONFIG, scores=SCORES)
            self.facts = self.folder / "facts.jsonl"
            self.facts.write_text('{"prompt": "a", "target": "other"}\n{"prompt": "c", "target": "yes"}\n')
            add_split(ledger, "split", self.facts)
            first = apply(ledger, fact("a"), fact("b", "no"))
            apply(ledger, fact("b", "yes"), fact("d"))
            revert(ledger, first, fact("a"))
        run = workspace.training / "run"
        run.mkdir(parents=True)
        write_note(run, "tiny", "facts.jsonl", "malmen train")
        self.workspace = workspace
        with closing(sqlite3.connect(workspace.database)) as db:
            db.execute("PRAGMA journal_mode = DELETE")
        self.sound = workspace.database.read_bytes()
        self.files = self._files()

    def __call__(self, data: bytes) -> bool:
        """Run every reading verb on these bytes as the database. Returns whether some verb was done all the same."""
        self.workspace.database.write_bytes(data)
        for scrap in ("-wal", "-shm", "-journal"):
            self.workspace.database.with_name(f"ledger.db{scrap}").unlink(missing_ok=True)
        done = [self.run(*words) in (ExitCode.DONE, ExitCode.DIFFERS) for words in READING]
        require(self.workspace.database.read_bytes() == data, "a reading verb wrote into the database")
        require(self._files() == self.files, "a reading verb wrote a file")
        return any(done)

    def run(self, *words: str) -> int:
        """One verb, in this process: its exit status, after a look at what it said."""
        places = {"FACTS": str(self.facts), "EXPORT": str(self.folder / "export")}
        arguments = [places.get(word, word) for word in words] + ["--workspace", str(self.workspace.root)]
        out, err = io.StringIO(), io.StringIO()
        before, sys.argv = sys.argv, ["malmen", *arguments]
        try:
            with redirect_stdout(out), redirect_stderr(err):
                status = main._status()
        finally:
            sys.argv = before
        shutil.rmtree(self.folder / "export", ignore_errors=True)
        said = out.getvalue() + err.getvalue()
        unexpected = next((line for line in said.splitlines() if "unexpected error" in line), None)
        require(unexpected is None, f"malmen {' '.join(words)}: {unexpected}")
        for line in said.split("\n"):
            check_words(line)
        if "--json" in words and status == ExitCode.DONE:
            json.loads(out.getvalue())
        return status

    def _files(self) -> dict[str, str]:
        return {name: digest for name, digest in file_digests(self.folder).items() if "/ledger.db" not in name}


# Damage -------------------------------------------------------------------------------------------------------------


def damaged(rng: Random, sound: bytes) -> bytes:
    """The bytes of a database after some damage: of a disk three times in ten, else of a stranger's statements."""
    return _pages(rng, sound) if rng.randrange(10) < 3 else _statements(rng, sound)


def _pages(rng: Random, sound: bytes) -> bytes:
    page = 4096
    blob, pages = bytearray(sound), len(sound) // page
    change = rng.choice(("flip", "flip", "cut", "copy", "zero", "random", "header", "append"))
    start = rng.randrange(pages) * page
    if change == "flip":
        for _ in range(rng.randint(1, 8)):
            blob[rng.randrange(len(blob))] ^= 1 << rng.randrange(8)
    elif change == "cut":
        del blob[rng.choice((0, 1, 15, 16, 99, 100, start, rng.randrange(len(blob)))) :]
    elif change == "copy":
        source = rng.randrange(pages) * page
        blob[start : start + page] = sound[source : source + page]
    elif change == "zero":
        blob[start : start + page] = bytes(page)
    elif change == "random":
        at = rng.randrange(len(blob) - 64)
        blob[at : at + 64] = rng.randbytes(64)
    elif change == "header":
        blob[rng.randrange(100)] = rng.randrange(256)
    else:
        blob += rng.randbytes(rng.choice((1, page)))
    return bytes(blob)


def _statements(rng: Random, sound: bytes) -> bytes:
    path = scratch() / "being-damaged.db"
    path.write_bytes(sound)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.row_factory = sqlite3.Row
        db.executescript(
            "PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON; PRAGMA journal_mode = MEMORY;"
        )
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            table = rng.choice(_TABLES)
            try:
                _statement(rng, db, table)
            except sqlite3.Error:
                continue  # not even SQLite does that
    return path.read_bytes()


def _statement(rng: Random, db: sqlite3.Connection, table: str) -> None:
    change = rng.choice(("cell", "cell", "cell", "json", "json", "json", "remove", "double", "schema", "swap"))
    rows = [row[0] for row in db.execute(f"SELECT rowid FROM {table}")]
    columns = [row["name"] for row in db.execute(f"PRAGMA table_info({table})")]
    column, row = rng.choice(columns), rng.choice(rows or [1])
    if change == "cell":
        if rng.random() < 0.5:
            _loosen(db, table, columns)
        db.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (_cell(rng), row))
    elif change == "json":
        _change_json(rng, db)
    elif change == "remove":
        db.execute(f"DELETE FROM {table} WHERE rowid = ? OR ?", (row, rng.random() < 0.3))
    elif change == "double":
        _loosen(db, table, columns)
        db.execute(f"INSERT INTO {table} SELECT * FROM {table} WHERE rowid = ?", (row,))
    elif change == "swap":
        other = rng.choice(columns)
        _loosen(db, table, columns)
        db.execute(f"UPDATE {table} SET {column} = {other} WHERE rowid = ?", (row,))
    else:
        db.execute(
            rng.choice(
                (
                    f"ALTER TABLE {table} RENAME COLUMN {column} TO other",
                    f"ALTER TABLE {table} ADD COLUMN more TEXT",
                    f"ALTER TABLE {table} DROP COLUMN {column}",
                    f"DROP TABLE {table}",
                    f"CREATE TRIGGER t AFTER INSERT ON {table} BEGIN DELETE FROM {table}; END",
                    f"PRAGMA user_version = {rng.randrange(9)}",
                )
            )
        )


def _loosen(db: sqlite3.Connection, table: str, columns: list[str]) -> None:
    """The table without types, keys and constraints, under its name."""
    names = ", ".join(columns)
    db.execute(f"CREATE TABLE loose ({names})")
    db.execute(f"INSERT INTO loose SELECT {names} FROM {table}")
    db.execute(f"DROP TABLE {table}")
    db.execute(f"ALTER TABLE loose RENAME TO {table}")


def _cell(rng: Random) -> object:
    texts = ("", "x", "HEAD", "../..", "\x1b[2J\u202e", "{}", "[]", "null", "9" * 5000, "[" * 5000, "\0")
    digests = ("sha256:", "sha256:" + "0" * 64, "sha256:" + "../" * 21 + "a")
    numbers = (None, 0, 1, -1, 2, 1 << 62, -(1 << 63), 0.5, 1e308, float("inf"))
    return rng.choice((*texts, *digests, *numbers, b"", b"\xff\xfe", rng.randbytes(8)))


_JSON = (
    ("entries", "details"),
    ("entries", "details"),
    ("models", "architecture"),
    ("models", "manifest"),
    ("editors", "config"),
    ("editors", "scores"),
    ("facts", "content"),
)


def _change_json(rng: Random, db: sqlite3.Connection) -> None:
    """A column that holds JSON, with the right beginning and something wrong deep inside."""
    table, column = rng.choice(_JSON)
    rows = db.execute(f"SELECT rowid, {column} FROM {table}").fetchall()
    if not rows:
        return
    row, said = rng.choice(rows)
    try:
        tree = json.loads(said)
    except (ValueError, TypeError, RecursionError):
        tree = None
    if not isinstance(tree, dict):  # damaged before
        return
    if column == "details":  # what an apply with a real model writes too
        tree |= {"check": {"before": {"ES": 0.5}, "after": {"ES": 1.0, "GS": None}, "wrong": [], "checked_old": 2}}
        tree |= {"facts": {"in_file": 2, "duplicates": 0, "active": 2}, "origin": {"repo": "a/b", "revision": "1"}}
    changed = value(rng) if rng.randrange(8) == 0 else replaced(rng, tree)
    text = json.dumps(changed).encode().decode()
    db.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (text, row))
