"""A world for refusals: everything that a command could write to, in one folder that can be put back and compared.

It is made once and restored from a copy before every case: a workspace with two models' worth of history, a fresh model
folder, a hub cache, fact files, a saved plan, an interrupted training, and a folder that is nobody's business.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import sqlite3
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import NamedTuple

from hub_caches import cache_model
from tiny_models import (
    TINY_TRAINING,
    World,
    fact_set,
    make_facts,
    make_world,
    save_tiny_model,
    write_facts,
)

from malmen_cli.cli import main
from malmen_cli.ledger import store
from malmen_cli.operations.train import train_editor

REPO = "maker/tiny"
SHARDS = tuple(f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
TRAINING = ("--steps", "2", "--rank", "4", "--blocks", "1", "--preserved-keys", "8", "--facts-per-step", "4")
PATIENCE = 60  # seconds after which a command is said to hang

COMMANDS: dict[str, tuple[str, ...]] = {
    "apply": ("apply", "{home}/facts.jsonl", "--sample", "0", "--device", "cpu"),
    "apply --plan": ("apply", "--plan", "{home}/plan.json", "--sample", "0", "--device", "cpu"),
    "apply --output": ("apply", "{home}/facts.jsonl", "--output", "{home}/copy", "--sample", "0", "--device", "cpu"),
    "apply --split": ("apply", "--split", "kept", "--sample", "0", "--device", "cpu"),
    "apply --dry-run": ("apply", "{home}/facts.jsonl", "--dry-run", "--sample", "0", "--device", "cpu"),
    "revert HEAD": ("revert", "HEAD"),
    "revert HEAD~1": ("revert", "HEAD~1"),
    "revert --fact": ("revert", "HEAD~1", "--fact", "2"),
    "rebase": ("rebase", "--editor", "{other_editor}", "--sample", "0", "--device", "cpu"),
    "train": ("train", "{home}/training.jsonl", *TRAINING, "--device", "cpu", "-q"),
    "train --resume": ("train", "{home}/training.jsonl", *TRAINING, "--seed", "5", "--resume", "--device", "cpu", "-q"),
    "recover": ("recover",),
    "gc": ("gc", "--leftovers", "--training", "--states", "--editors", "--yes"),
    "export": ("export", "--output", "{home}/exported"),
    "export --as delta": ("export", "--as", "delta", "--output", "{home}/exported"),
    "models add": ("models", "add", "fresh", "{home}/fresh"),
    "models add, hub": ("models", "add", "hub", REPO),
    "data add": ("data", "add", "more", "{home}/facts.jsonl"),
    "plan": ("plan", "{home}/facts.jsonl", "--device", "cpu"),
    "plan -o": ("plan", "{home}/facts.jsonl", "--quick", "-o", "{home}/new-plan.json"),
    "eval": ("eval", "{home}/facts.jsonl", "--n-edits", "2", "--device", "cpu"),
    "eval ID": ("eval", "HEAD", "--device", "cpu"),
}
"""Every verb that writes, and those that read the checkpoint's weights; `--model` is the only registered one."""

READING = frozenset({"apply --dry-run", "plan"})
# They write what they found into the ledger, and nothing else; where they refuse, nothing at all.
EVALUATING = frozenset({"eval", "eval ID"})
"""Commands that write nothing even where all is well."""


class Kept(NamedTuple):
    """What a picture keeps of a file, a link, a folder or anything else."""

    kind: str
    mode: int
    content: str  # digest, or where a link leads
    size: int
    written_ns: int  # 0 where that may change: folders, and SQLite's own files


@dataclass(frozen=True)
class RefusalWorld:
    """`home` is where it lies; what it is made of lies beside it, in `saved`."""

    home: Path
    saved: Path
    editor: str
    other_editor: str

    @property
    def workspace(self) -> Path:
        return self.home / ".malmen"

    @property
    def model(self) -> Path:
        return self.home / "model"

    @property
    def fresh(self) -> Path:
        return self.home / "fresh"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    @property
    def training_run(self) -> Path:
        [run] = (self.workspace / "training").iterdir()
        return run

    def world(self) -> World:
        """As the other rooms' tests know it."""
        from malmen_cli.ledger import Workspace

        return World(Workspace(self.workspace), self.model)

    def restore(self) -> None:
        remove(self.home)
        shutil.copytree(self.saved, self.home, symlinks=True)

    def arguments(self, command: str) -> list[str]:
        words = [word.format(home=self.home, other_editor=self.other_editor) for word in COMMANDS[command]]
        return [*words, "--workspace", str(self.workspace)]

    @contextmanager
    def database(self) -> Iterator[sqlite3.Connection]:
        """To write what malmen never would; all of it is in the one file afterwards."""
        with closing(sqlite3.connect(self.workspace / "ledger.db")) as db:
            db.execute("PRAGMA foreign_keys = OFF")
            db.execute("PRAGMA ignore_check_constraints = ON")
            yield db
            db.commit()
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextmanager
def refusal_world(parent: str | None) -> Iterator[RefusalWorld]:
    """Make the world below `parent` (None: where temporary folders lie); it is gone afterwards."""
    with TemporaryDirectory(dir=parent) as place:
        Path(place).chmod(0o755)  # also for whoever else a test becomes
        home = Path(place) / "home"
        home.mkdir()
        world = make_world(home, sharded=True)
        write_facts(home / "training.jsonl", make_facts(24, start=3000))
        write_facts(home / "facts.jsonl", make_facts(3, start=20))
        save_tiny_model(home / "fresh", seed=3)
        cache_model(home / "cache", REPO, home / "fresh")
        (home / "nobodys-business").mkdir()
        (home / "nobodys-business" / "diary.txt").write_text("Dear diary")
        world.apply(*make_facts(3))
        world.apply(*make_facts(3, start=3))
        with world.ledger() as (ledger, model):
            with ledger.read() as db:
                [editor] = store.editors(db, model.id)
            config = TINY_TRAINING.model_copy(update={"seed": 1})
            other = train_editor(ledger, model, fact_set(make_facts(24, start=4000)), config).record
        made = RefusalWorld(home, Path(place) / "saved", editor.id, other.id)
        with _quietly():
            _interrupted_training(made)
            saved = [*made.arguments("plan -o"), "--editor", made.editor]
            assert run_program([word.replace("new-plan", "plan") for word in saved]) == 0
            assert run_program([word.replace("more", "kept") for word in made.arguments("data add")]) == 0
        with made.database():
            pass
        for scratch in made.workspace.glob("ledger.db-*"):
            scratch.unlink()
        home.rename(made.saved)
        made.restore()
        yield made


def _interrupted_training(made: RefusalWorld) -> None:
    """A run that saved its state after one step, and was killed in the next."""
    from malmen_cli.training import loop

    steps: list[int] = []
    real = loop._Run.step

    def step(run: loop._Run) -> None:
        steps.append(1)
        if len(steps) == 2:
            raise KeyboardInterrupt
        real(run)

    loop._Run.step = step  # type: ignore[method-assign]
    try:
        with suppress(KeyboardInterrupt):
            run_program([word for word in made.arguments("train --resume") if word != "--resume"])
    finally:
        loop._Run.step = real  # type: ignore[method-assign]
    assert (made.training_run / "state.safetensors").is_file()


@contextmanager
def _quietly() -> Iterator[None]:
    with Path(os.devnull).open("w") as nothing:
        out, err, sys.stdout, sys.stderr = sys.stdout, sys.stderr, nothing, nothing
        try:
            yield
        finally:
            sys.stdout, sys.stderr = out, err


# Running -------------------------------------------------------------------------------------------------------------


class Hangs(BaseException):
    """A command took longer than any refusal may; no `except Exception` holds it up."""


def run_program(arguments: Sequence[str]) -> int:
    """The program in this process, its words on its standard streams; raises `Hangs` rather than wait for ever."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise Hangs(" ".join(arguments))

    before, sys.argv = sys.argv, ["malmen", *arguments]
    handler = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    try:
        return main._status()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        sys.argv = before


# Pictures ------------------------------------------------------------------------------------------------------------


def picture(home: Path) -> dict[str, Kept]:
    """Everything below a folder, hidden or not, but for SQLite's scratch files; the ledger as it is with its log."""
    found = {}
    for path in sorted(home.rglob("*")):
        if not path.name.endswith(("-wal", "-shm")) or not _is_plain(path):
            found[str(path.relative_to(home))] = _kept(path)
    return found


def differing_bytes(before: dict[str, Kept], after: dict[str, Kept]) -> tuple[list[str], int]:
    """Names of what is new, gone or another, and how many bytes of it are there now."""
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return names, sum(after[name].size for name in names if name in after)


def _kept(path: Path) -> Kept:
    status = path.lstat()
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        return Kept("link", mode, str(path.readlink()), 0, status.st_mtime_ns)
    if stat.S_ISREG(status.st_mode):
        content = _ledger(path) if path.name == "ledger.db" else hashlib.sha256(path.read_bytes()).hexdigest()
        return Kept("file", mode, content, status.st_size, 0 if path.name == "ledger.db" else status.st_mtime_ns)
    return Kept(str(stat.S_IFMT(status.st_mode)), mode, "", 0, 0)


def _is_plain(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _ledger(database: Path) -> str:
    """Digest of the database as it is once its log is worked in: of its bytes, and of every row. A copy is read."""
    with TemporaryDirectory() as place:
        copy = Path(place) / "ledger.db"
        for suffix in ("", "-wal"):
            source = database.with_name(database.name + suffix)
            if source.is_file():
                shutil.copyfile(source, copy.with_name(copy.name + suffix))
        hasher = hashlib.sha256()
        with suppress(sqlite3.Error), closing(sqlite3.connect(copy)) as db:
            db.text_factory = bytes
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            tables = [row[0].decode() for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for table in sorted(tables):
                hasher.update(repr(sorted(db.execute(f"SELECT * FROM {table}"), key=repr)).encode())
        hasher.update(copy.read_bytes())
        return hasher.hexdigest()


def remove(folder: Path) -> None:
    """A folder with all below it, also where a test has taken the right to do so away."""
    if folder.is_symlink() or not folder.exists():
        folder.unlink(missing_ok=True)
        return
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder)


def flip(path: Path, place: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def a_socket(path: Path) -> None:
    """Make a socket there."""
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)
    os.chdir(here)
