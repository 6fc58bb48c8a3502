"""Commands that faults are injected into, each with the world it starts in and what the next command finds afterwards.

Those without torch run the program itself where it needs none, and the stand-in for the mathematics of `ledger_world`
where it does: the same code from the ledger downwards. Those with torch are the program on tiny real models.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ledger_world import apply, apply_draft, fact, make_world, revert, tiny
from next_command import State, collected, data_added, moved, restored, settled, upgraded, workspace_made
from recorded_commands import COMMANDS, workspace_in
from safetensors_folders import EDITED

from malmen_cli.checkpoint.durable import write_all
from malmen_cli.checkpoint.patch import changes_by_file, write_changes
from malmen_cli.ledger import Ledger, create_workspace, store, writing
from malmen_cli.ledger.connection import SCHEMA_REVISION

KEPT_LEDGERS = sorted((Path(__file__).parents[1] / "ledger").glob("ledger_*.sql"))
FULL_GC = ("gc", "--leftovers", "--training", "--states", "--editors", "--yes")


@dataclass(frozen=True)
class Case:
    """One command in one world.

    Attributes:
        command, files: for the table of figures. inspect: is the next command: it settles, looks everything through,
            and returns what the world is like then; it raises where anything is lost or not sound.
        repeated: whether the same command must succeed, and end as ever, where the fault left the state before it.
        naive: a negative control, for which some point must be bad.
    """

    command: str
    files: str
    prepare: Callable[[Path], None]
    run: Callable[[Path], None]
    inspect: Callable[[Path], State]
    torch: bool = False
    repeated: bool = True
    naive: bool = False


# Commands ------------------------------------------------------------------------------------------------------------


def malmen(*arguments: str, workspace: bool = True) -> Callable[[Path], None]:
    """The program, in this process; `{folder}` in an argument is the world's."""

    def run(folder: Path) -> None:
        from malmen_cli.cli.main import main

        words = [argument.format(folder=folder) for argument in arguments]
        sys.argv = ["malmen", *words, *(["--workspace", str(workspace_in(folder).root)] if workspace else [])]
        main()

    return run


def _known(name: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        for _ in COMMANDS[name].run(folder):
            pass

    return run


def _revert_one_fact(folder: Path) -> None:
    with Ledger.open(workspace_in(folder), writing=True) as ledger:
        with ledger.read() as db:
            entry = store.resolve_entry(db, "#2")
        revert(ledger, entry, fact("a"))


def _applies(*facts: tuple[str, ...], sharded: bool = False) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        workspace, _ = make_world(folder, sharded=sharded)
        with Ledger.open(workspace, writing=True) as ledger:
            for prompts in facts:
                apply(ledger, *map(fact, prompts))

    return prepare


def _moved_by_hand(folder: Path) -> None:
    """An edited model, and where it is now."""
    _applies(("a",), sharded=True)(folder)
    shutil.copytree(folder / "model", folder / "other")


def _written_over(folder: Path) -> None:
    """An edited model over which somebody has written the base."""
    make_world(folder, sharded=True)
    base = {path: path.read_bytes() for path in (folder / "model").glob("*.safetensors")}
    with Ledger.open(workspace_in(folder), writing=True) as ledger:
        apply(ledger, fact("a"))
    for path, data in base.items():
        path.write_bytes(data)


def _interrupted_and_written_over(folder: Path) -> None:
    """A half-done apply, over whose tensors somebody has written what neither it nor the ledger knows."""
    COMMANDS["settle: complete"].prepare(folder)
    with Ledger.open(workspace_in(folder)) as ledger:
        model = tiny(ledger)
    for name in EDITED:
        slot = model.manifest.slot(name)
        with (model.path / model.manifest.tensors[name].file).open("r+b") as file:
            write_all(file.fileno(), bytes(slot.length), slot.start)


def _kept_ledger(file: Path, folder: Path) -> None:
    workspace = workspace_in(folder)
    workspace.root.mkdir(parents=True)
    with closing(sqlite3.connect(workspace.database)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(file.read_text("utf-8"))


# Negative controls ---------------------------------------------------------------------------------------------------


def _checkpoint_first(folder: Path) -> None:
    """The naive order: the checkpoint, and then the ledger."""
    from malmen_cli.ledger import commit_entry, transactions

    with Ledger.open(workspace_in(folder), writing=True) as ledger:
        model = tiny(ledger)
        with writing(ledger, model, "malmen apply"):
            draft = apply_draft(ledger, [fact("c"), fact("d")])
            write_changes(model.path, model.manifest, draft.changes)
            transactions.write_changes = lambda *_: None
            commit_entry(ledger, draft)


def _ledger_first(folder: Path) -> None:
    """Without the pending row: the entry is called applied at once, and then the checkpoint is written."""
    from malmen_cli.ledger import transactions

    insert, applied = transactions.insert_entry, transactions.mark_applied
    transactions.insert_entry = lambda db, *given, **named: applied(db, insert(db, *given, **named))
    transactions.mark_applied = lambda db, entry: entry
    _known("apply, two shards")(folder)


def _in_place(folder: Path) -> None:
    """Without temporary file and rename: bytes are written into the shard itself, in two halves of each tensor."""
    from malmen_cli.ledger import transactions

    def overwrite(folder: Path, manifest: object, changes: object) -> None:
        for name, slots in changes_by_file(manifest, changes).items():  # type: ignore[arg-type]
            with (folder / name).open("r+b") as file:
                for change, slot in slots:
                    half = slot.length // 2
                    write_all(file.fileno(), change.data[:half], slot.start)
                    write_all(file.fileno(), change.data[half:], slot.start + half)

    transactions.write_changes = overwrite
    _known("apply, two shards")(folder)


# Real models ---------------------------------------------------------------------------------------------------------


def _real(*, sharded: bool = False, registered: bool = True, editors: int = 1) -> Callable[[Path], None]:
    """A tiny real model with two applies of three facts, five more facts in a file, and maybe a second editor."""

    def prepare(folder: Path) -> None:
        from tiny_models import TINY_TRAINING, fact_set, make_facts, save_tiny_model, write_facts
        from tiny_models import make_world as make_real_world

        from malmen_cli.operations.train import train_editor

        folder.mkdir()
        write_facts(folder / "facts.jsonl", make_facts(5, start=6))
        write_facts(folder / "training.jsonl", make_facts(24, start=3000))
        if not registered:
            create_workspace(folder)
            save_tiny_model(folder / "model", sharded=sharded)
            return
        world = make_real_world(folder, sharded=sharded)
        world.apply(*make_facts(3))
        world.apply(*make_facts(3, start=3))
        if editors == 2:
            with world.ledger() as (ledger, model):
                other = TINY_TRAINING.model_copy(update={"seed": 7})
                train_editor(ledger, model, fact_set(make_facts(24, start=3500)), other)

    return prepare


def _rebase(folder: Path) -> None:
    with Ledger.open(workspace_in(folder)) as ledger, ledger.read() as db:
        newest = store.newest_editor(db, tiny(ledger).id)
    assert newest is not None
    malmen("rebase", "--editor", newest.id, "--device", "cpu")(folder)


ONE, TWO = "one file", "two shards"
_APPLY = ("apply", "{folder}/facts.jsonl", "--device", "cpu", "--sample", "0")
_TRAIN = ("train", "{folder}/training.jsonl", "--steps", "2", "--device", "cpu", "--rank", "4", "--blocks", "1")
_TWICE = (("a",), ("b",))
_real_case = partial(Case, inspect=settled, torch=True)

CASES: dict[str, Case] = {
    "apply": Case("apply*", ONE, _applies(*_TWICE), _known("apply, one file"), settled),
    "apply, sharded": Case("apply*", TWO, _applies(*_TWICE, sharded=True), _known("apply, two shards"), settled),
    "revert HEAD": Case("revert, newest", ONE, _applies(*_TWICE), malmen("revert", "HEAD"), settled),
    "revert HEAD, sharded": Case(
        "revert, newest", TWO, _applies(*_TWICE, sharded=True), malmen("revert", "HEAD"), settled
    ),
    "revert to the base": Case("revert, to the base", ONE, _applies(("a",)), malmen("revert", "HEAD"), settled),
    "revert, older": Case("revert, older*", ONE, _applies(*_TWICE), _known("revert of an older entry"), settled),
    "revert, older, sharded": Case(
        "revert, older*", TWO, _applies(*_TWICE, sharded=True), _known("revert of an older entry"), settled
    ),
    "revert, one fact": Case("revert, one fact*", TWO, _applies(("a", "b"), sharded=True), _revert_one_fact, settled),
    "recover, forward": Case(
        "recover of a half-done apply, forward", TWO, COMMANDS["settle: complete"].prepare, malmen("recover"), settled
    ),
    "recover, back": Case(
        "recover of a half-done apply, back", TWO, COMMANDS["settle: withdraw"].prepare, malmen("recover"), settled
    ),
    "restore": Case("recover --restore", TWO, _written_over, malmen("recover", "--restore"), restored),
    "restore, interrupted": Case(
        "recover --restore of a half-done apply",
        TWO,
        _interrupted_and_written_over,
        malmen("recover", "--restore"),
        restored,
    ),
    "register": Case("models add*", ONE, COMMANDS["register a model"].prepare, _known("register a model"), settled),
    "move": Case("models move", TWO, _moved_by_hand, malmen("models", "move", "tiny", "{folder}/other"), moved),
    "init": Case(
        "init", "", COMMANDS["make a workspace"].prepare, malmen("init", "{folder}", workspace=False), workspace_made
    ),
    **{
        f"upgrade of {file.stem}": Case(
            f"upgrade from schema {file.stem.removeprefix('ledger_')}",
            "",
            partial(_kept_ledger, file),
            malmen("init", "{folder}", workspace=False),
            upgraded,
        )
        for file in KEPT_LEDGERS
        if file.stem.removeprefix("ledger_") != SCHEMA_REVISION
    },
    "data add": Case(
        "data add",
        "",
        COMMANDS["add data"].prepare,
        malmen("data", "add", "first", "{folder}/facts.jsonl"),
        data_added,
    ),
    "gc": Case(
        "gc of all scopes", ONE, COMMANDS["gc of everything"].prepare, malmen(*FULL_GC), collected, repeated=False
    ),
    "copy": Case(
        "apply --output, the copy*",
        TWO,
        COMMANDS["copy a checkpoint"].prepare,
        _known("copy a checkpoint"),
        COMMANDS["copy a checkpoint"].inspect,
    ),
    "working copy": Case(
        "models add from a hub's cache, the copy*",
        TWO,
        COMMANDS["copy from a hub's cache"].prepare,
        _known("copy from a hub's cache"),
        COMMANDS["copy from a hub's cache"].inspect,
    ),
    # with torch
    "real models add": _real_case(
        "models add", ONE, _real(registered=False), malmen("models", "add", "tiny", "{folder}/model")
    ),
    "real apply": _real_case("apply", ONE, _real(), malmen(*_APPLY)),
    "real apply, sharded": _real_case("apply", TWO, _real(sharded=True), malmen(*_APPLY)),
    "real revert, older": _real_case(
        "revert, older", TWO, _real(sharded=True), malmen("revert", "#2", "--device", "cpu")
    ),
    "real revert, one fact": _real_case(
        "revert, one fact", ONE, _real(), malmen("revert", "#3", "--fact", "2", "--device", "cpu")
    ),
    "real rebase": _real_case("rebase", TWO, _real(sharded=True, editors=2), _rebase),
    "real train": _real_case("train", ONE, _real(), malmen(*_TRAIN)),
    # negative controls
    "naive: checkpoint first": Case(
        "the checkpoint, then the ledger", TWO, _applies(*_TWICE, sharded=True), _checkpoint_first, settled, naive=True
    ),
    "naive: ledger first": Case(
        "no pending row", TWO, _applies(*_TWICE, sharded=True), _ledger_first, settled, naive=True
    ),
    "naive: in place": Case("written in place", TWO, _applies(*_TWICE, sharded=True), _in_place, settled, naive=True),
}
