"""A world to tamper with, what it was before, and the program run on it in this process.

What a mutation changed is judged here without the program: by bytes of files, and by rows that plain sqlite3 reads.
"""

from __future__ import annotations

import io
import shutil
import sqlite3
import sys
from collections.abc import Iterable
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_IMODE
from typing import Any

import typer
from rich_world import rich_world

from malmen_cli.cli import main
from malmen_cli.cli.verify import verify
from malmen_cli.errors import ExitCode, MalmenError
from malmen_cli.ledger import Ledger, Workspace

Rows = dict[str, list[tuple[Any, ...]]]

# What shows the ledger's content, and must not change where nothing logical has.
SHOWING = ("verify", "log", "show #2 -m tiny", "show #3 -m tiny", "models list", "data list", "diff base -m tiny")


def run(*arguments: str | Path) -> tuple[int, str]:
    """A command in this process: exit status, and standard output with the errors after it."""
    before, sys.argv = sys.argv, ["malmen", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            status = main._status()
    finally:
        sys.argv = before
    return status, out.getvalue() + err.getvalue()


def read_rows(database: Path) -> Rows | None:
    """The schema and every row of every table as plain sqlite3 reads them; None for what it finds unsound."""
    if not database.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)) as db:
            db.text_factory = lambda raw: raw.decode(errors="surrogateescape")
            # What ANALYZE notes is for SQLite's own use, and says nothing.
            query = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT GLOB 'sqlite_stat[0-9]'"
            schema = db.execute(query).fetchall()
            tables = [name for kind, name, _, _ in schema if kind == "table"]
            rows = {table: db.execute(f'SELECT * FROM "{table}"').fetchall() for table in tables}
            if db.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                return None
    except (sqlite3.Error, UnicodeError):
        return None
    return {name: sorted(found, key=repr) for name, found in {**rows, "schema": schema}.items()}


@dataclass
class TamperedWorld:
    """A folder with a workspace and its models, all small, and the sound bytes of every file.

    Attributes:
        checked: files whose every byte the ledger answers for. links_allowed: of these, those that may be links.
        leftovers: objects that no row names, which may go.
    """

    root: Path
    workspace: Workspace
    models: list[Path]
    sound: dict[Path, tuple[bytes, int]] = field(default_factory=dict)
    folders: set[Path] = field(default_factory=set)
    checked: set[Path] = field(default_factory=set)
    links_allowed: set[Path] = field(default_factory=set)
    leftovers: set[Path] = field(default_factory=set)
    rows: Rows = field(default_factory=dict)
    shown: list[tuple[int, str]] = field(default_factory=list)
    name: str = ""

    def __post_init__(self) -> None:
        with closing(sqlite3.connect(self.workspace.database)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.drop_log()
        for path in self.root.rglob("*"):
            if path.is_dir():
                self.folders.add(path)
            else:
                self.sound[path] = path.read_bytes(), S_IMODE(path.stat().st_mode)
        for path in self.sound:
            if path.is_relative_to(self.workspace.objects) or path.is_relative_to(self.workspace.editors):
                self.checked.add(path)
            elif path.parent in self.models and path.suffix in (".json", ".safetensors") and path.name[0] != ".":
                self.checked.add(path)
                if path.suffix == ".json":
                    self.links_allowed.add(path)
        rows = read_rows(self.database)
        assert rows is not None
        self.rows = rows
        said = repr(rows)
        objects = {path for path in self.checked if path.is_relative_to(self.workspace.objects)}
        self.leftovers = {path for path in objects if path.name not in said}
        self.shown = self.show()

    @property
    def database(self) -> Path:
        return self.workspace.database

    def drop_log(self) -> None:
        for end in ("-wal", "-shm", "-journal"):
            self.database.with_name(self.database.name + end).unlink(missing_ok=True)

    def verify(self) -> tuple[int, str]:
        """`malmen verify`, the command's function without the parsing of its line, which takes as long again."""
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                verify(workspace=self.workspace.root)
                status = int(ExitCode.DONE)
            except typer.Exit as end:
                status = end.exit_code
            except MalmenError as error:
                status = int(error.exit_code)
                print(error.message)
        return status, out.getvalue() + err.getvalue()

    def show(self) -> list[tuple[int, str]]:
        """What the program says of the ledger, damage aside."""
        return [run(*verb.split(), "--json", "--workspace", self.workspace.root) for verb in SHOWING]

    def changed_tables(self) -> set[str] | None:
        """Tables (or the schema) whose rows are others now; None for a database that is not sound any more."""
        rows = read_rows(self.database)
        if rows is None:
            return None
        return {name for name in rows.keys() | self.rows.keys() if rows.get(name) != self.rows.get(name)}

    def is_changed(self, path: Path) -> bool:
        """Whether a file is not what it was, for someone who reads it; only of checked files."""
        if path not in self.checked:
            return False
        if path.is_symlink() and path not in self.links_allowed:
            return True
        if path in self.leftovers and not path.exists():  # nothing is lost with it, unless it came back as another
            return any(other not in self.sound for other in self.workspace.objects.rglob("*") if other.is_file())
        return not path.is_file() or path.read_bytes() != self.sound[path][0]

    def restore(self, paths: Iterable[Path]) -> None:
        """Put the sound bytes back at these paths; what was not there goes."""
        for path in paths:
            if path.is_symlink() or path.exists():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            if path in self.sound:
                data, mode = self.sound[path]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
                path.chmod(mode)
        self.drop_log()

    def restore_all(self, folder: Path) -> None:
        """A folder with all below it, as it was."""
        shutil.rmtree(folder, ignore_errors=True)
        for inner in sorted(self.folders):
            if inner.is_relative_to(folder):
                inner.mkdir(parents=True, exist_ok=True)
        self.restore(path for path in self.sound if path.is_relative_to(folder))

    def is_sound(self) -> bool:
        """Whether every file is as it was: each mutation must have been undone before the next."""
        self.drop_log()
        now = {path: path.read_bytes() for path in self.root.rglob("*") if not path.is_dir()}
        return now == {path: data for path, (data, _) in self.sound.items()}


def stand_in_world(folder: Path, *, sharded: bool) -> TamperedWorld:
    """The rich world on the stand-in for the mathematics, with a leftover that nothing refers to, and free pages."""
    workspace = rich_world(folder, sharded=sharded)
    with Ledger.open(workspace, writing=True) as ledger:
        ledger.objects.put(b"a leftover of a killed command")
        with ledger.write() as db:
            db.executemany("INSERT INTO settings VALUES (?, ?)", [(f"filling {n}", "x" * 900) for n in range(60)])
        with ledger.write() as db:
            db.execute("DELETE FROM settings WHERE key LIKE 'filling%'")
    return TamperedWorld(folder, workspace, [folder / "model", folder / "other"])


def real_world(folder: Path) -> TamperedWorld:
    """Two tiny models: applies, a superseded fact, reverts, a rebase, gc, a split, an editor that nothing used."""
    from tiny_models import NAME, TINY_TRAINING, fact_set, make_fact, make_facts, save_tiny_model, write_facts
    from tiny_models import make_world as make_real_world

    from malmen_cli.ledger import store
    from malmen_cli.operations.models import register
    from malmen_cli.operations.train import train_editor

    world = make_real_world(folder)
    other = save_tiny_model(folder / "other", "gptj", seed=3)
    facts = write_facts(folder / "facts.jsonl", make_facts(3))
    with world.ledger() as (ledger, model):
        register(ledger, "other", other, command="malmen models add")
        for seed in (1, 2):
            settings = TINY_TRAINING.model_copy(update={"seed": seed})
            train_editor(ledger, model, fact_set(make_facts(24, start=4000)), settings)
        with ledger.read() as db:
            newest, middle = [editor.id for editor in store.editors(db, model.id)][:2]
    at = ("--workspace", world.workspace.root, "-m", NAME)
    world.apply(*make_facts(3))
    world.apply(make_fact(1, "Oslo"), make_fact(5))
    for command in (
        ("revert", "#2", "--fact", "1", *at),
        ("rebase", "--editor", middle, *at),
        ("revert", "HEAD~1", *at),
        ("gc", "--states", "--yes", *at),
        ("data", "add", "few", facts, *at[:2]),
    ):
        status, said = run(*command)
        assert status in (0, 3), (command, said)
    assert newest != middle
    return TamperedWorld(folder, world.workspace, [folder / "model", folder / "other"])
