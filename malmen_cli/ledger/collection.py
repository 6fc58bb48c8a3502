"""What a workspace could do without, by scope, and dropping it in an order that a kill cannot harm.

Never collectable: rows, facts, editors in use, and the tensors of the base, of the head and of an entry still pending.
Everything else that a state consisted of, the rows give again.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from malmen_cli.checkpoint.digests import short
from malmen_cli.checkpoint.durable import TEMPORARY, fsync_folder, in_words
from malmen_cli.checkpoint.lock import checkpoint_lock, is_locked
from malmen_cli.errors import Locked, UsageError
from malmen_cli.facts import printable
from malmen_cli.ledger import evaluations, row_types, store
from malmen_cli.ledger.database import Ledger
from malmen_cli.ledger.entry_rows import now
from malmen_cli.ledger.records import EditorRecord, ModelRecord
from malmen_cli.ledger.registration import check_name
from malmen_cli.ledger.training_runs import run_model, run_words

Scope = Literal["leftovers", "training", "states", "editors", "evaluations"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that can be dropped: a file, or a folder with all in it, or rows of the database.

    Attributes:
        name: a digest, an editor's id, or a path in the workspace. what: in words. size: in bytes.
    """

    scope: Scope
    name: str
    what: str
    path: Path
    size: int


# What is collectable -------------------------------------------------------------------------------------------------


def collectable(ledger: Ledger, scopes: Iterable[Scope], model: ModelRecord | None = None) -> list[Item]:
    """What could be dropped now, of one model where one is given. Writes nothing and takes no lock.

    Leftovers belong to no model. While a command writes, its files may be among them: `collect` looks again.
    """
    find = {
        "leftovers": _leftovers,
        "training": _training,
        "states": _states,
        "editors": _editors,
        "evaluations": _evaluations,
    }
    with ledger.read() as db:
        return [item for scope in SCOPES if scope in set(scopes) for item in find[scope](ledger, db, model)]


def needed_objects(db: sqlite3.Connection, model: ModelRecord) -> set[str]:
    """Tensors of a model that must be there: its base's, its head's, and those of an entry still pending."""
    state = store.state(db, model.id)
    base = {*store.base_tensors(db, model.id), *state}
    needed = {model.manifest.tensors[name].digest for name in base} | set(state.values())
    pending = store.pending_entry(db, model.id)
    for delta in [] if pending is None else store.deltas_of(db, pending.id):
        needed |= {delta.before, delta.after}
    return needed


def _states(ledger: Ledger, db: sqlite3.Connection, model: ModelRecord | None) -> Iterator[Item]:
    needed = {str(row[0]) for row in db.execute("SELECT object FROM row_packs")}
    for record in store.models(db):
        needed |= needed_objects(db, record)
    owners: dict[str, set[int]] = {}
    tensors: dict[str, str] = {}
    query = "SELECT model_id, tensor, before, after FROM parameter_deltas JOIN entries ON id = entry_id"
    for row in db.execute(query):
        for digest in {row["before"], row["after"]} - needed:
            owners.setdefault(digest, set()).add(row["model_id"])
            tensors[digest] = row["tensor"]
    names = {record.id: record.name for record in store.models(db)}
    for digest, ids in sorted(owners.items()):
        if (model is None or ids == {model.id}) and ledger.objects.contains(digest):
            path = ledger.objects.path(digest)
            if not ids <= names.keys():
                raise row_types.damaged("an entry is of a model that is not there")
            whose = ", ".join(sorted(names[i] for i in ids))
            yield Item("states", digest, f"a past state of {tensors[digest]} of {whose}", path, _size(path))


def _leftovers(ledger: Ledger, db: sqlite3.Connection, model: ModelRecord | None) -> Iterator[Item]:
    if model is not None:
        return
    workspace, objects = ledger.workspace, ledger.objects
    deltas = "SELECT before FROM parameter_deltas UNION SELECT after FROM parameter_deltas"
    referenced = {str(row[0]) for row in db.execute(f"{deltas} UNION SELECT object FROM row_packs")}
    for record in store.models(db):
        referenced |= needed_objects(db, record)
    for digest in objects:
        if digest not in referenced:
            path = objects.path(digest)
            yield Item("leftovers", digest, f"object {short(digest)}, which nothing refers to", path, _size(path))
    editors = {str(row[0]) for row in db.execute("SELECT id FROM editors")}
    home = workspace.checkpoints.resolve()
    inside = (model.path.relative_to(home) for model in store.models(db) if model.path.is_relative_to(home))
    copies = {path.parts[0] for path in inside if path.parts}
    # By name too: the workspace, or a link in its path, may have moved since, and a copy is all there is of its model.
    copies |= {model.name for model in store.models(db)}
    found = [(path, "a half-written file") for path in sorted(workspace.objects.rglob(f"{TEMPORARY}*"))]
    found += [(path, "an editor that was never recorded") for path in _below(workspace.editors, editors)]
    found += [(path, "a working copy that was never registered") for path in _below(workspace.checkpoints, copies)]
    for path, what in found:
        yield Item("leftovers", str(path.relative_to(workspace.root)), what, path, _size(path))


def _training(ledger: Ledger, db: sqlite3.Connection, model: ModelRecord | None) -> Iterator[Item]:
    folders = (path for path in _below(ledger.workspace.training, set()) if path.is_dir() and not path.is_symlink())
    for path in folders:  # what else lies there is nobody's run
        if (model is None or run_model(path) == model.name) and not is_locked(path):
            name = str(path.relative_to(ledger.workspace.root))
            yield Item("training", name, run_words(path), path, _size(path))


def _editors(ledger: Ledger, db: sqlite3.Connection, model: ModelRecord | None) -> Iterator[Item]:
    query = "SELECT editor_id FROM entries WHERE editor_id IS NOT NULL UNION SELECT editor_id FROM row_packs"
    used = {str(row[0]) for row in db.execute(query)}
    for record in store.models(db) if model is None else [model]:
        seen = set[str]()
        for editor in store.editors(db, record.id):
            if (method := _method(editor)) not in seen:
                seen.add(method)  # the newest one of its method stays
            elif editor.id not in used:
                check_name(editor.id)  # it becomes the name of a folder to remove
                path = ledger.workspace.editors / editor.id
                what = f"an editor of {record.name} that no entry used, of {editor.created_at[:19].replace('T', ' ')}"
                yield Item("editors", editor.id, what, path, _size(path))


def _method(editor: EditorRecord) -> str:
    settings = editor.config.get("config")
    return str(settings.get("method", "malmen")) if isinstance(settings, dict) else "malmen"


def _evaluations(ledger: Ledger, db: sqlite3.Connection, model: ModelRecord | None) -> Iterator[Item]:
    sizes = evaluations.sizes(db)
    for kept in evaluations.evaluations(db, None if model is None else model.id):
        of = "an entry" if kept.entry_id is not None else kept.source or "a fact file"
        what = f"evaluation {short(kept.id)} of {of}, {kept.facts:,} facts, of {kept.created_at[:19].replace('T', ' ')}"
        yield Item(
            "evaluations", kept.id, printable(what, limit=None), ledger.workspace.database, sizes.get(kept.id, 0)
        )


def _below(folder: Path, known: set[str]) -> list[Path]:
    """What lies in a folder under other names than the known ones."""
    return sorted(path for path in folder.iterdir() if path.name not in known) if folder.is_dir() else []


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links count as nothing, and so does what is gone by now.

    Nothing is locked while this looks: a command that writes may put its files in place or remove them.
    """
    is_folder = path.is_dir() and not path.is_symlink()
    below = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    size = 0
    for file in below if is_folder else [path]:
        with suppress(FileNotFoundError):
            found = file.lstat()
            size += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return size


# Dropping it ---------------------------------------------------------------------------------------------------------


def collect(ledger: Ledger, items: Sequence[Item], command: str, timeout: float = 0) -> list[Item]:
    """Drop those of the items that are collectable still, while no command writes, and return them.

    Raises:
        Locked: a checkpoint of this workspace, or the workspace itself, is being written; nothing was dropped then.
    """
    with _undisturbed(ledger, command, timeout):
        wanted = {(item.scope, item.name) for item in items}
        dropped = []
        for item in collectable(ledger, {item.scope for item in items}):
            if (item.scope, item.name) in wanted:
                dropped.append(item)
        _drop_states(ledger, [item for item in dropped if item.scope == "states"])
        _drop_editors(ledger, [item for item in dropped if item.scope == "editors"])
        _drop_evaluations(ledger, [item for item in dropped if item.scope == "evaluations"])
        _remove([item.path for item in dropped if item.scope == "leftovers"])
        return [item for item in dropped if item.scope != "training" or _drop_run(item.path, command)]


@contextmanager
def _undisturbed(ledger: Ledger, command: str, timeout: float) -> Iterator[None]:
    """Hold the workspace and the checkpoint of every registered model; a folder that is gone has no writer."""
    with ledger.read() as db:
        folders = sorted(record.path for record in store.models(db))
    with ExitStack() as locks:
        locks.enter_context(ledger.hold(command, timeout))
        for folder in folders:
            if folder.is_dir():
                with suppress(UsageError):  # nobody writes where nothing can be written
                    locks.enter_context(checkpoint_lock(folder, command, timeout))
        yield


def _drop_states(ledger: Ledger, items: Sequence[Item]) -> None:
    """First the rows, committed, then the files: an object that is absent is always known to be so on purpose."""
    if items:
        with ledger.write() as db:
            query = "INSERT OR IGNORE INTO dropped_objects (digest, dropped_at) VALUES (?, ?)"
            db.executemany(query, [(item.name, now()) for item in items])
        _remove([item.path for item in items])


def _drop_editors(ledger: Ledger, items: Sequence[Item]) -> None:
    """First the row: a folder without one is a leftover, a row without its folder would be damage."""
    for item in items:
        with ledger.write() as db:
            db.execute("DELETE FROM editors WHERE id = ?", (item.name,))
        if item.path.is_dir():
            # Out of the way whole, so that nobody finds half an editor under its name.
            part = item.path.with_name(f".{item.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            with in_words(item.path):
                item.path.rename(part)
            _remove([part])


def _drop_evaluations(ledger: Ledger, items: Sequence[Item]) -> None:
    """The database does not shrink: what follows takes the room."""
    if items:
        with ledger.write() as db:
            for item in items:
                evaluations.drop_evaluation(db, item.name)


def _drop_run(folder: Path, command: str) -> bool:
    """Remove a training run's folder, unless it has been taken up again."""
    try:
        with checkpoint_lock(folder, command):
            _remove([folder])
            return True
    except Locked:
        return False


def _remove(paths: Iterable[Path]) -> None:
    folders = set()
    for path in paths:
        with in_words(path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        folders.add(path.parent)
    for folder in folders:
        fsync_folder(folder)
