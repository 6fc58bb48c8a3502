"""Commands whose writes are recorded and cut, each with the world it starts in and what must be true of any remains.

    python recorded_commands.py NAME FOLDER      run a command; this is what runs under strace

`run` yields whenever a command has said that it was done: from there on, what it did must survive a power failure.
`inspect` is the next command: it settles, looks everything through, and returns what the world is like then.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from ledger_world import EDITOR, apply, apply_draft, dump, fact, make_world, revert, tiny
from recorded_writes import mark
from safetensors_folders import EDITED, file_digests, safetensors_bytes, write_model_folder

from malmen_cli.checkpoint import check_checkpoint, read_manifest
from malmen_cli.checkpoint.copy import copy_checkpoint
from malmen_cli.checkpoint.durable import TEMPORARY
from malmen_cli.checkpoint.lock import LOCK_NAME
from malmen_cli.checkpoint.working_copy import make_working_copy
from malmen_cli.errors import UsageError
from malmen_cli.ledger import (
    Ledger,
    Workspace,
    add_editor,
    add_split,
    create_workspace,
    register_model,
    store,
    verify_ledger,
    writing,
)
from malmen_cli.ledger.collection import SCOPES, collect, collectable
from malmen_cli.ledger.connection import SCHEMA_REVISION, schema_revision

State = object
FIRST_LEDGER = Path(__file__).parents[1] / "ledger" / "ledger_0001.sql"


@dataclass(frozen=True)
class Command:
    """One way to change a workspace, a checkpoint or both."""

    prepare: Callable[[Path], None]
    run: Callable[[Path], Iterator[None]]
    inspect: Callable[[Path], State]


def workspace_in(folder: Path) -> Workspace:
    return Workspace(folder / ".malmen")


# Entries --------------------------------------------------------------------------------------------------------------


def _two_applies(folder: Path, *, sharded: bool = False) -> None:
    workspace, _ = make_world(folder, sharded=sharded)
    with Ledger.open(workspace, writing=True) as ledger:
        apply(ledger, fact("a"))
        apply(ledger, fact("b"))


def _two_applies_sharded(folder: Path) -> None:
    _two_applies(folder, sharded=True)


def _one_apply(folder: Path) -> None:
    workspace, _ = make_world(folder)
    with Ledger.open(workspace, writing=True) as ledger:
        apply(ledger, fact("a"))


def _apply(folder: Path) -> Iterator[None]:
    with Ledger.open(workspace_in(folder), writing=True) as ledger:
        apply(ledger, fact("c"), fact("d"))
        yield


def _revert(folder: Path, number: int) -> Iterator[None]:
    with Ledger.open(workspace_in(folder), writing=True) as ledger:
        with ledger.read() as db:
            entry = store.resolve_entry(db, f"#{number}")
        revert(ledger, entry)
        yield


def _revert_first(folder: Path) -> Iterator[None]:
    yield from _revert(folder, 2)


def _session(folder: Path) -> Iterator[None]:
    """Entries upon entries, with one connection and with several: the log grows, is emptied and begins anew."""
    with Ledger.open(workspace_in(folder), writing=True) as ledger:
        first = apply(ledger, fact("c"))
        yield
        revert(ledger, first)
        yield
    with Ledger.open(workspace_in(folder), writing=True) as ledger:
        ledger._connection.execute("PRAGMA wal_autocheckpoint = 8")
        for number in range(4):
            apply(ledger, *(fact(f"{number} {which}") for which in range(8)))
            yield


def inspect_entries(folder: Path) -> State:
    """Settled, sound, nothing left lying about, and in one of the states that the ledger knows."""
    workspace = settled_by_the_next(folder)
    files = file_digests(folder / "model")
    left = left_behind(files)
    assert not left, f"left behind: {left}"
    return files, dump(workspace)


def settled_by_the_next(folder: Path) -> Workspace:
    """The next writing command: it settles, and everything verifies."""
    workspace = workspace_in(folder)
    with Ledger.open(workspace, writing=True) as ledger:
        with writing(ledger, tiny(ledger), "the next command"):
            pass
        require_sound(ledger)
    return workspace


def left_behind(files: Iterable[str]) -> list[str]:
    """Of the files of a checkpoint's folder, temporary ones and locks."""
    return [name for name in files if Path(name).name.startswith(TEMPORARY) or Path(name).name == LOCK_NAME]


def require_sound(ledger: Ledger) -> None:
    problems = verify_ledger(ledger).problems
    assert not problems, "; ".join(map(str, problems))


# An entry that a kill has left half done, and the command that settles it


class _Stop(BaseException):
    """Stands for the kill."""


def _half_done(folder: Path, renames: int) -> None:
    """An apply to two shards, stopped after so many of them were renamed: the entry is pending."""
    import pytest

    _two_applies_sharded(folder)
    done: list[Path] = []
    rename = Path.rename

    def stopping(self: Path, target: Path) -> Path:
        if target.suffix == ".safetensors":
            if len(done) == renames:
                raise _Stop
            done.append(target)
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patch, Ledger.open(workspace_in(folder), writing=True) as ledger:
        patch.setattr(Path, "rename", stopping)
        try:
            apply(ledger, fact("c"), fact("d"))
        except _Stop:
            return
    raise AssertionError("the apply was not stopped")


def _nothing_renamed(folder: Path) -> None:
    _half_done(folder, 0)


def _one_shard_renamed(folder: Path) -> None:
    _half_done(folder, 1)


def _settle(folder: Path) -> Iterator[None]:
    with (
        Ledger.open(workspace_in(folder), writing=True) as ledger,
        writing(ledger, tiny(ledger), "the next command"),
    ):
        yield


# Registration, new workspaces, migration, splits, editors -------------------------------------------------------------


def _unregistered(folder: Path) -> None:
    create_workspace(_made(folder))
    write_model_folder(folder / "model")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _register(folder: Path) -> Iterator[None]:
    checkpoint = folder / "model"
    with Ledger.open(workspace_in(folder), writing=True) as ledger:
        register_model(ledger, "tiny", checkpoint, read_manifest(checkpoint), EDITED, {"layers": 3})
        yield


def _inspect_registration(folder: Path) -> State:
    """Registered or not; where not, the same command registers it."""
    workspace = workspace_in(folder)
    with Ledger.open(workspace, writing=True) as ledger:
        require_sound(ledger)
    found = dump(workspace)
    if not found["models"]:
        for _ in _register(folder):
            pass
    inspect_entries(folder)
    return found


def _nowhere(folder: Path) -> None:
    folder.mkdir()


def _create(folder: Path) -> Iterator[None]:
    create_workspace(folder)
    yield


def _inspect_workspace(folder: Path) -> State:
    """A whole ledger or none; in either case the same command makes it whole."""
    workspace = workspace_in(folder)
    whole = workspace.database.exists() and schema_revision(workspace, writing=True) == SCHEMA_REVISION
    found = dump(workspace) if whole else None
    create_workspace(folder)
    with Ledger.open(workspace) as ledger:
        require_sound(ledger)
    assert found in (None, dump(workspace))
    return found


def _first_schema(folder: Path) -> None:
    workspace = workspace_in(_made(folder))
    workspace.root.mkdir()
    with closing(sqlite3.connect(workspace.database)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(FIRST_LEDGER.read_text("utf-8"))


def _upgrade(folder: Path) -> Iterator[None]:
    with Ledger.open(workspace_in(folder), writing=True):
        yield


def _inspect_upgrade(folder: Path) -> State:
    """Every row of the old ledger is there, before the upgrade and after it; the next opening completes it."""
    workspace = workspace_in(folder)
    revision = schema_revision(workspace, writing=True)
    with Ledger.open(workspace, writing=True):
        pass
    assert schema_revision(workspace) == SCHEMA_REVISION
    rows = dump(workspace)
    kept = {table: rows[table] for table in ("settings", "models", "editors", "facts", "entries", "parameter_deltas")}
    assert len(kept["entries"]) == 4
    return revision == SCHEMA_REVISION, kept


def _with_fact_file(folder: Path) -> None:
    create_workspace(_made(folder))
    (folder / "facts.jsonl").write_text('{"prompt": "a", "target": "yes"}\n')


def _add_data(folder: Path) -> Iterator[None]:
    with Ledger.open(workspace_in(folder), writing=True) as ledger:
        add_split(ledger, "first", folder / "facts.jsonl")
        yield
        add_split(ledger, "second", folder / "facts.jsonl", on_conflict="first")
        yield


def inspect_rows(folder: Path) -> State:
    workspace = workspace_in(folder)
    with Ledger.open(workspace, writing=True) as ledger:
        require_sound(ledger)
    return dump(workspace)


def _save_editor(folder: Path) -> Iterator[None]:
    from malmen_cli.operations.keeping import keep_editor

    with Ledger.open(workspace_in(folder), writing=True) as ledger, ledger.hold("malmen train"):
        keep_editor(ledger, tiny(ledger), _editor_files())
        yield


def _editor_files() -> dict[str, bytes]:
    training = {"history": [{"summary": 0.5}]}
    description = {"base": "b", "layers": [], "per_fact": True, "config": {}, "training": training}
    tensors = safetensors_bytes({"ridge": ("F32", (300,), b"\0\0\x80\x3f" * 300)})
    return {"editor.safetensors": tensors, "editor.json": json.dumps(description).encode()}


# What can be dropped, and copies --------------------------------------------------------------------------------------


def _much_to_drop(folder: Path) -> None:
    _two_applies(folder)
    workspace = workspace_in(folder)
    with Ledger.open(workspace, writing=True) as ledger:
        ledger.objects.put(b"nobody's")
        for name in ("second", "third"):
            shutil.copytree(workspace.editors / EDITOR, workspace.editors / name)
            add_editor(ledger, tiny(ledger), name)
    (workspace.training / "run").mkdir(parents=True)
    (workspace.training / "run" / "state.safetensors").write_bytes(b"half a state")


def _collect(folder: Path) -> Iterator[None]:
    with Ledger.open(workspace_in(folder), writing=True) as ledger:
        collect(ledger, collectable(ledger, SCOPES), "malmen gc")
        yield


def _inspect_collection(folder: Path) -> State:
    """However much was dropped: sound, the checkpoint untouched; gc can go on, and every revert can be made."""
    with Ledger.open(workspace_in(folder), writing=True) as ledger:
        require_sound(ledger)
        all_dropped = collectable(ledger, SCOPES) == []
        collect(ledger, collectable(ledger, SCOPES), "malmen gc")
        assert collectable(ledger, SCOPES) == []
        with ledger.read() as db:
            first = store.resolve_entry(db, "#2")
        files = file_digests(folder / "model")
        revert(ledger, first)
        require_sound(ledger)
    return all_dropped, files


def _model_only(folder: Path) -> None:
    write_model_folder(folder / "model", sharded=True)


def _copy(folder: Path) -> Iterator[None]:
    checkpoint = folder / "model"
    copy_checkpoint(checkpoint, read_manifest(checkpoint), [], folder / "new" / "copies" / "copy", {"edit.json": b"{}"})
    yield


def _inspect_copy(folder: Path) -> State:
    """The copy is whole or not there."""
    target, checkpoint = folder / "new" / "copies" / "copy", folder / "model"
    if not target.exists():
        return None
    assert check_checkpoint(target, read_manifest(checkpoint), {}) == []
    assert (target / "edit.json").read_bytes() == b"{}"
    return file_digests(target)


def _hub_snapshot(folder: Path) -> None:
    """As a hub's cache has it: blobs, and a snapshot of links to them."""
    write_model_folder(folder / "blobs", sharded=True)
    (folder / "snapshot").mkdir()
    for blob in (folder / "blobs").iterdir():
        (folder / "snapshot" / blob.name).symlink_to(blob)
    create_workspace(folder)


def _working_copy(folder: Path) -> Iterator[None]:
    make_working_copy(folder / "snapshot", folder / "blobs", workspace_in(folder).checkpoints / "tiny")
    yield


def _inspect_working_copy(folder: Path) -> State:
    target = workspace_in(folder).checkpoints / "tiny"
    if not target.exists():
        return None
    assert file_digests(target) == file_digests(folder / "blobs")
    return file_digests(target)


# malmen itself -------------------------------------------------------------------------------------------------------


def real_world(folder: Path) -> None:
    """A tiny real model of two shards with three facts applied, and five more in a file."""
    from tiny_models import make_facts, make_world, write_facts

    folder.mkdir()
    world = make_world(folder, sharded=True)
    world.apply(*make_facts(3))
    write_facts(folder / "facts.jsonl", make_facts(5, start=3))


# Negative controls: malmen without one of its safeties ----------------------------------------------------------------


def _apply_without_synchronous(folder: Path) -> Iterator[None]:
    with Ledger.open(workspace_in(folder), writing=True) as ledger:
        ledger._connection.execute("PRAGMA synchronous = OFF")
        apply(ledger, fact("c"), fact("d"))
        yield


def _apply_checkpoint_first(folder: Path) -> Iterator[None]:
    """The naive order: the shards, and the entry when they are done."""
    import pytest

    from malmen_cli.checkpoint.patch import write_changes

    with pytest.MonkeyPatch.context() as patch, Ledger.open(workspace_in(folder), writing=True) as ledger:
        model = tiny(ledger)
        with writing(ledger, model, "malmen apply"):
            draft = apply_draft(ledger, [fact("c"), fact("d")])
            write_changes(model.path, model.manifest, draft.changes)
            patch.setattr("malmen_cli.ledger.transactions.write_changes", lambda *_: None)
            from malmen_cli.ledger import commit_entry

            commit_entry(ledger, draft)
        yield


COMMANDS: dict[str, Command] = {
    "apply, one file": Command(_two_applies, _apply, inspect_entries),
    "apply, two shards": Command(_two_applies_sharded, _apply, inspect_entries),
    "revert to the base": Command(_one_apply, _revert_first, inspect_entries),
    "revert of an older entry": Command(_two_applies_sharded, _revert_first, inspect_entries),
    "six entries in a row": Command(_two_applies, _session, inspect_entries),
    "settle: withdraw": Command(_nothing_renamed, _settle, inspect_entries),
    "settle: complete": Command(_one_shard_renamed, _settle, inspect_entries),
    "register a model": Command(_unregistered, _register, _inspect_registration),
    "make a workspace": Command(_nowhere, _create, _inspect_workspace),
    "upgrade the schema": Command(_first_schema, _upgrade, _inspect_upgrade),
    "add data": Command(_with_fact_file, _add_data, inspect_rows),
    "save an editor": Command(_two_applies, _save_editor, inspect_rows),
    "gc of everything": Command(_much_to_drop, _collect, _inspect_collection),
    "copy a checkpoint": Command(_model_only, _copy, _inspect_copy),
    "copy from a hub's cache": Command(_hub_snapshot, _working_copy, _inspect_working_copy),
}
NAIVE: dict[str, Command] = {
    "apply with synchronous = OFF": Command(_two_applies, _apply_without_synchronous, inspect_entries),
    "apply, the checkpoint before the ledger": Command(_two_applies, _apply_checkpoint_first, inspect_entries),
}


def main(name: str, folder: Path) -> None:
    with suppress(UsageError):  # run a second time after a kill that came too late: it is there already
        for _ in (COMMANDS | NAIVE)[name].run(folder):
            mark("done")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
