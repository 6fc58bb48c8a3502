"""R8: a workspace that a stranger has had his hands in: pending entries, rows, objects, locks, sidecars."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crafted_ledgers import EDITED, delta, objects, pending
from refusal_world import SHARDS, RefusalWorld, a_socket, flip, run_program
from refusals import CHECKPOINT, WRITING, Case, Prepare

from malmen_cli.checkpoint.safetensors_file import read_header
from malmen_cli.errors import ExitCode
from malmen_cli.ledger import Ledger, store

SETTLING = (*(command for command in WRITING if command != "apply --plan"), "recover")
"""A saved plan is stale once its head is no longer the head, before anything is settled."""

ZEROS = "sha256:" + "0" * 64
DEEP = '{"a": ' + "[" * 99_999 + "]" * 99_999 + "}"
DAMAGED = "damaged|cannot be"


# Pending entries -----------------------------------------------------------------------------------------------------


def longer(world: RefusalWorld) -> str:
    return objects(world).put(objects(world).get(delta(world, "after")) + b"\0" * 4)


def anothers(world: RefusalWorld) -> str:
    """The other edited tensor's bytes: of the same length."""
    with world.database() as db:
        query = "SELECT after FROM parameter_deltas JOIN entries ON id = entry_id WHERE number = 3 AND tensor <> ?"
        return str(db.execute(query, (EDITED,)).fetchone()[0])


def without_object(world: RefusalWorld) -> None:
    pending(half=True)(world)
    objects(world).path(delta(world, "after")).unlink()


def with_damaged_object(world: RefusalWorld) -> None:
    pending(half=True)(world)
    path = objects(world).path(delta(world, "after"))
    path.chmod(0o644)
    flip(path, 7)


def neither(world: RefusalWorld) -> None:
    pending()(world)
    for name in SHARDS:
        slot = read_header(world.model / name).slots.get(EDITED)
        if slot is not None:
            flip(world.model / name, slot.start)


def with_a_link(world: RefusalWorld) -> None:
    pending()(world)
    path = next(world.model / name for name in SHARDS if EDITED in read_header(world.model / name).slots)
    path.rename(world.home / "moved")
    path.symlink_to(world.home / "moved")


def with_a_pipe(world: RefusalWorld) -> None:
    with_a_link(world)
    path = next(world.model / name for name in SHARDS if (world.model / name).is_symlink())
    path.unlink()
    os.mkfifo(path)


def interrupted(name: str, prepare: Prepare, code: ExitCode, words: str) -> Case:
    return Case(name, prepare, SETTLING, code, words)


WRONG, UNSAFE, UNSOUND = ExitCode.WRONG_BASE, ExitCode.USAGE, ExitCode.VERIFICATION_FAILED
PENDING = [
    interrupted("a tensor that is not there", pending(tensor="no.such.tensor"), UNSAFE, "has no tensor"),
    interrupted("a tensor with a path for a name", pending(tensor="../../../etc/passwd"), UNSAFE, "has no tensor"),
    interrupted("a tensor with an absolute name", pending(tensor="/etc/passwd"), UNSAFE, "has no tensor"),
    interrupted("another state before", pending(before=ZEROS), WRONG, "does not follow from the entry before"),
    interrupted("a path for an object after", pending(after="sha256:../../../x"), WRONG, "does not follow"),
    interrupted("another algorithm's digest", pending(after="md5:" + "0" * 32), WRONG, "does not follow"),
    interrupted("an object that was never stored", pending(half=True, after=ZEROS), UNSOUND, "cannot be read"),
    interrupted("an object that is lost", without_object, UNSOUND, "cannot be read"),
    interrupted("an object that is damaged", with_damaged_object, UNSOUND, "is damaged"),
    interrupted("an object of another length", pending(half=True, after=longer), UNSAFE, "takes 2048 bytes, not 2052"),
    interrupted("another tensor's object", pending(half=True, told=False, after=anothers), WRONG, "not what was begun"),
    interrupted("figures that were changed", pending(told=False, norm=0.5), WRONG, "not what was begun"),
    interrupted("a tensor neither as before nor after", neither, WRONG, "is neither as before nor as after"),
    interrupted("a link in place of its shard", with_a_link, WRONG, "is a link"),
    interrupted("a pipe in place of its shard", with_a_pipe, WRONG, "is not a regular file"),
    Case("unsettled, for readers", pending(), ("export", "plan", "eval"), WRONG, "is not settled"),
]


@pytest.mark.parametrize("case", PENDING, ids=str)
def test_a_crafted_pending_entry(case: Case, refuse: Callable[[str, Case], None]) -> None:
    refuse("pending entries", case)


def test_an_honest_pending_entry_is_completed(world: RefusalWorld) -> None:
    pending(told=False, half=True)(world)
    assert run_program(world.arguments("recover")) == ExitCode.DONE
    with world.world().ledger() as (ledger, model), ledger.read() as db:
        assert store.head(db, model.id).number == 3
    assert run_program(world.arguments("plan -o")) == ExitCode.DONE


# Rows ----------------------------------------------------------------------------------------------------------------


def row(table: str, column: str, value: object, where: str = "1") -> Prepare:
    def prepare(world: RefusalWorld) -> None:
        with world.database() as db:
            said = value.format(home=world.home) if isinstance(value, str) and "{home}" in value else value
            db.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (said,))

    return prepare


def manifest(change: Callable[[dict[str, Any]], object]) -> Prepare:
    def prepare(world: RefusalWorld) -> None:
        with world.database() as db:
            said = json.loads(db.execute("SELECT manifest FROM models").fetchone()[0])
            change(said)
            db.execute("UPDATE models SET manifest = ?", (json.dumps(said),))

    return prepare


def renamed(kind: str, old: str, new: str) -> Prepare:
    def change(said: dict[str, Any]) -> None:
        said[kind][new] = said[kind].pop(old)
        for record in said["tensors"].values():
            record["file"] = new if record["file"] == old else record["file"]

    return manifest(change)


def tensor(**values: object) -> Prepare:
    return manifest(lambda said: said["tensors"][EDITED].update(values))


def crafted(name: str, prepare: Prepare, words: str = DAMAGED, code: ExitCode = ExitCode.FAILED) -> Case:
    return Case(name, prepare, (*(command for command in CHECKPOINT if command != "apply --plan"), "gc"), code, words)


def of_model(name: str, prepare: Prepare, words: str, code: ExitCode) -> Case:
    return Case(name, prepare, CHECKPOINT, code, words)


FOLDING = ("apply", "apply --plan", "revert HEAD", "revert HEAD~1", "revert --fact", "rebase", "plan")

ROWS = [
    crafted("a model's name with a slash", row("models", "name", "../escape")),
    crafted("a model's name with control characters", row("models", "name", "\x1b[2J")),
    crafted("a model's path that is relative", row("models", "path", "model")),
    crafted("a model's path with a NUL", row("models", "path", "/a\0b")),
    crafted("a model's path that is a blob", row("models", "path", b"/etc")),
    of_model("a model's path elsewhere", row("models", "path", "{home}/nobodys-business"), "No such file", WRONG),
    of_model("a model's path to another model", row("models", "path", "{home}/fresh"), "left it", WRONG),
    Case("a model's path to a file", row("models", "path", "{home}/facts.jsonl"), SETTLING, UNSAFE, "Not a directory"),
    of_model("a manifest that is no JSON", row("models", "manifest", "{"), "manifest is damaged", UNSAFE),
    of_model("a manifest nested too deeply", row("models", "manifest", DEEP), "manifest is damaged", UNSAFE),
    of_model("a manifest with a path", renamed("weights", SHARDS[0], "../x.safetensors"), "not a bare", UNSAFE),
    of_model("a manifest with an absolute path", renamed("others", "config.json", "/etc/passwd"), "not a bare", UNSAFE),
    of_model("a manifest with a hidden file", renamed("others", "config.json", ".malmen.json"), "not a bare", UNSAFE),
    of_model("a tensor beyond its file", tensor(stop=1 << 40), "manifest is damaged", UNSAFE),
    of_model("a tensor within the header", tensor(start=0), "manifest is damaged", UNSAFE),
    of_model("a tensor of another shape", tensor(shape=[16, 31]), "manifest is damaged", UNSAFE),
    of_model("a tensor of a made-up dtype", tensor(dtype="F31"), "manifest is damaged", UNSAFE),
    of_model("a tensor with a path for a digest", tensor(digest="sha256:../x"), "manifest is damaged", UNSAFE),
    Case("an entry of no kind", row("entries", "kind", "gift", "number = 2"), FOLDING, ExitCode.FAILED, DAMAGED),
    Case("an entry's details", row("entries", "details", "[]", "number = 1"), ("gc",), ExitCode.FAILED, DAMAGED),
    Case("a state that is a path", row("parameter_deltas", "after", "../x"), SETTLING, WRONG, "left it|as its ledger"),
    Case("a fact that is none", row("facts", "content", "7"), ("revert --fact",), ExitCode.FAILED, DAMAGED),
    Case("rows' object a path", row("row_packs", "object", "../x"), ("revert HEAD~1",), UNSOUND, "not the name of"),
    Case("rows beyond their object", row("fact_rows", "start", 10**6), ("revert HEAD~1",), UNSOUND, "shorter than"),
    Case("rows before their object", row("fact_rows", "start", -5), ("revert HEAD~1",), UNSOUND, "shorter|cannot"),
]


@pytest.mark.parametrize("case", ROWS, ids=str)
def test_crafted_rows(case: Case, refuse: Callable[[str, Case], None]) -> None:
    refuse("rows of the ledger", case)


# Files of the workspace ----------------------------------------------------------------------------------------------


def instead(name: str, make: Callable[[Path], object], *, of: str = "workspace") -> Prepare:
    """Something else where the workspace, or the checkpoint, has or would have a file or folder."""

    def prepare(world: RefusalWorld) -> None:
        path = getattr(world, of) / name
        if path.exists():
            path.rename(world.home / "moved")
        make(path)

    return prepare


def link(path: Path) -> None:
    moved = path.parents[1] / "moved"
    moved.touch() if not moved.exists() else None
    path.symlink_to(moved)


def every_object(make: Callable[[Path], object]) -> Prepare:
    def prepare(world: RefusalWorld) -> None:
        (world.home / "moved").mkdir()
        for path in sorted((world.workspace / "objects" / "sha256").glob("??/*")):
            path.rename(world.home / "moved" / path.name)
            make(path)

    return prepare


def linked_object(path: Path) -> None:
    path.symlink_to(path.parents[4] / "moved" / path.name)


def garbage(path: Path) -> None:
    path.write_bytes(b"garbage " * 1000)


def schema(statement: str) -> Prepare:
    def prepare(world: RefusalWorld) -> None:
        with world.database() as db:
            db.execute(statement)

    return prepare


EVERY = (*CHECKPOINT, "gc", "models add", "data add")
TRIGGER = "CREATE TRIGGER strange AFTER INSERT ON entries BEGIN DELETE FROM facts; END"


def placed(name: str, prepare: Prepare, words: str, code: ExitCode = ExitCode.FAILED) -> Case:
    return Case(name, prepare, EVERY, code, words)


PLACES = [
    placed("the ledger a link", instead("ledger.db", link), "is a link"),
    placed("the ledger a pipe", instead("ledger.db", os.mkfifo), "is not a file"),
    placed("the ledger a folder", instead("ledger.db", Path.mkdir), "is not a file"),
    placed("the ledger garbage", instead("ledger.db", garbage), "is damaged"),
    placed("the ledger lost", instead("ledger.db", lambda path: None), "is missing or empty"),
    placed("the ledger's log a link", instead("ledger.db-wal", link), "is a link"),
    placed("the ledger's log a pipe", instead("ledger.db-wal", os.mkfifo), "is not a file"),
    placed("a trigger", schema(TRIGGER), "did not make"),
    placed("a view", schema("CREATE VIEW strange AS SELECT 1"), "did not make"),
    placed("a newer malmen's schema", schema("UPDATE alembic_version SET version_num = '9999'"), "newer malmen"),
    placed("the objects a link", instead("objects", link), "is a link"),
    placed("the editors a link", instead("editors", link), "is a link"),
    placed("the trainings a link", instead("training", link), "is a link"),
    placed("the working copies a link", instead("checkpoints", link), "is a link"),
    Case("objects that are links", every_object(linked_object), ("apply", "revert HEAD", "rebase"), UNSOUND, "a link"),
    Case(
        "objects that are pipes", every_object(os.mkfifo), ("apply", "revert HEAD", "rebase"), UNSOUND, "not a regular"
    ),
    *(
        Case(f"the checkpoint's lock {what}", instead(".malmen.lock", make, of="model"), SETTLING, UNSAFE, words)
        for what, make, words in [
            ("a link", link, "is a link"),
            ("a pipe", os.mkfifo, "is not a plain file"),
            ("a folder", Path.mkdir, "cannot write in"),
            ("a socket", a_socket, "cannot write in"),
        ]
    ),
    Case("the workspace's lock a link", instead(".malmen.lock", link), ("gc", "models add"), UNSAFE, "is a link"),
    *(
        Case(f"the sidecar {what}", instead(".malmen.json", make, of="model"), SETTLING, UNSAFE, "is not a plain file")
        for what, make in [("a link", link), ("a pipe", os.mkfifo), ("a folder", Path.mkdir)]
    ),
    *(
        Case(f"a new model's sidecar {what}", instead(".malmen.json", make, of="fresh"), ("models add",), UNSAFE, words)
        for what, make, words in [("a link", link, "plain file"), ("a pipe", os.mkfifo, "plain file")]
    ),
]


@pytest.mark.parametrize("case", PLACES, ids=str)
def test_files_of_the_workspace(case: Case, refuse: Callable[[str, Case], None]) -> None:
    refuse("files of the workspace", case)


def test_what_the_prepared_worlds_start_from_is_sound(world: RefusalWorld) -> None:
    from malmen_cli.ledger import verify_ledger

    with Ledger.open(world.world().workspace) as ledger:
        assert verify_ledger(ledger).problems == []
