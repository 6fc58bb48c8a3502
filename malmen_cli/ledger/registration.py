"""Registering models and editors: what every later entry starts from."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malmen_cli.checkpoint.digests import canonical_json, digest_bytes, digest_file, digest_json
from malmen_cli.checkpoint.durable import Need, require_space
from malmen_cli.checkpoint.lock import PATIENCE, checkpoint_lock
from malmen_cli.checkpoint.manifest import Manifest
from malmen_cli.checkpoint.safetensors_file import read_tensor
from malmen_cli.errors import NOT_OURS, UnsafeFile, UsageError, WrongBase
from malmen_cli.ledger import store
from malmen_cli.ledger.active_set import NOTHING_ACTIVE
from malmen_cli.ledger.connection import check_utf8, insert
from malmen_cli.ledger.database import Ledger
from malmen_cli.ledger.entry_rows import insert_entry, now, stored_again
from malmen_cli.ledger.records import EditorRecord, ModelRecord
from malmen_cli.ledger.row_types import NAME
from malmen_cli.ledger.sidecar import check_sidecar, warning_about
from malmen_cli.ledger.space import database_growth

EDITOR_FILES = ("editor.json", "editor.safetensors")


@dataclass(frozen=True, slots=True)
class Registration:
    """A newly registered model, a warning to show when another ledger has edited its folder, and a note to show too."""

    model: ModelRecord
    warning: str | None
    note: str | None = None


def register_model(
    ledger: Ledger,
    name: str,
    folder: Path,
    manifest: Manifest,
    base_tensor_names: Iterable[str],
    architecture: Mapping[str, Any],
    *,
    command: str = "",
    details: Mapping[str, Any] | None = None,
    timeout: float = PATIENCE,
) -> Registration:
    """Store the base tensors that edits will need, then the model and its register entry in one transaction.

    `manifest` is `read_manifest(folder)`, `architecture` the caller's description of the edited layers. Raises
    UsageError for a bad or taken name or folder, WrongBase when the folder changed since the manifest was read, Locked
    where another process holds the workspace or the folder for longer than `timeout` seconds.
    """
    folder = folder.resolve()
    names = sorted(base_tensor_names)
    check_name(name)
    check_utf8(folder)
    with ledger.hold(command, timeout), checkpoint_lock(folder, command, timeout):
        check_sidecar(folder)
        with ledger.read() as db:
            _refuse_known(db, name, folder)
        _require_room(ledger, manifest, names)
        _store_base(ledger, folder, manifest, names)
        described = {**(details or {}), "architecture": digest_json(dict(architecture)), "base_tensors": names}
        with ledger.write() as db:
            _refuse_known(db, name, folder)
            model_id = insert(
                db,
                "models",
                name=name,
                path=str(folder),
                base_digest=manifest.digest,
                manifest=manifest.to_json(),
                architecture=canonical_json(dict(architecture)),
                created_at=now(),
            )
            model = store.model_with_id(db, model_id)
            insert_entry(db, model, kind="register", active_digest=NOTHING_ACTIVE, command=command, details=described)
            stored_again(db, (_base_digest(manifest, tensor) for tensor in names))
        return Registration(model, warning_about(folder))


def ensure_base_objects(ledger: Ledger, model: ModelRecord, tensor_names: Iterable[str]) -> None:
    """Store base tensors that registration did not. The caller holds the checkpoint's lock.

    They are read from the checkpoint, which is right only for tensors that were never edited: raises WrongBase where
    the bytes are not the base's.
    """
    missing = [name for name in tensor_names if not ledger.objects.contains(_base_digest(model.manifest, name))]
    _store_base(ledger, model.path, model.manifest, missing)
    if missing:
        with ledger.write() as db:
            stored_again(db, (_base_digest(model.manifest, name) for name in missing))


def add_editor(
    ledger: Ledger,
    model: ModelRecord,
    editor_id: str,
    *,
    per_fact: bool = True,
    config: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
) -> EditorRecord:
    """Record the editor whose files lie, complete and synced, in `workspace.editors / editor_id`."""
    check_name(editor_id)
    digest = editor_digest(ledger.workspace.editors / editor_id)
    with ledger.write() as db:
        try:
            insert(
                db,
                "editors",
                id=editor_id,
                model_id=model.id,
                digest=digest,
                created_at=now(),
                per_fact=per_fact,
                config=canonical_json(dict(config or {})),
                scores=canonical_json(dict(scores or {})),
            )
        except sqlite3.IntegrityError as error:
            raise UsageError(f"there is an editor {editor_id} already", remedy="see malmen models show") from error
        return store.editor(db, editor_id)


def renew_editor(ledger: Ledger, editor: EditorRecord) -> EditorRecord:
    """Record that an editor's files were made again: tensors and settings are in its id, its log may be another.

    Raises:
        WrongBase: the log is another, and entries name the editor: their ids cover its record.
    """
    digest = editor_digest(ledger.workspace.editors / editor.id)
    with ledger.write() as db:
        if any(entry.editor_id == editor.id for entry in store.entries(db, editor.model_id)):
            check_editor(ledger, editor)
        db.execute("UPDATE editors SET digest = ? WHERE id = ?", (digest, editor.id))
        return store.editor(db, editor.id)


def editor_digest(folder: Path) -> str:
    """One digest over the digests of an editor's two files.

    Raises UsageError where one is missing, UnsafeFile for links and what is no file: an editor may be a stranger's.
    """
    paths = [folder / name for name in EDITOR_FILES]
    for path in (folder, *paths):
        if path.is_symlink():
            raise UnsafeFile(f"{path} is a link", remedy="remove it, and ask where it came from")
    try:
        return digest_json({path.name: digest_file(path) for path in paths})
    except OSError as error:
        remedy = "train it again, or restore the workspace from a backup"
        if isinstance(error, PermissionError):
            remedy = "see to it that its files can be read"
        raise UsageError(f"{folder} does not hold an editor: {error.strerror}", remedy=remedy) from error


def editor_digest_of(files: Mapping[str, bytes]) -> str:
    """`editor_digest` of files that are in memory."""
    return digest_json({name: digest_bytes(data) for name, data in files.items()})


def check_editor(ledger: Ledger, editor: EditorRecord) -> Path:
    """The editor's folder, its files being those that were recorded. Raises WrongBase otherwise."""
    folder = ledger.workspace.editors / editor.id
    if editor_digest(folder) != editor.digest:
        raise WrongBase(f"the files of editor {editor.id} were changed", remedy="restore them from a backup")
    return folder


def check_name(name: str) -> None:
    """Names become folders: letters, digits, `.`, `_` and `-` only, not beginning with `.` or `-`."""
    if not NAME.fullmatch(name):
        remedy = "use letters, digits, '.', '_' and '-', beginning with a letter, a digit or '_'"
        raise UsageError(f"{name!r} cannot be a name", remedy=remedy)


def _store_base(ledger: Ledger, folder: Path, manifest: Manifest, names: list[str]) -> None:
    blobs = (read_tensor(folder / manifest.tensors[name].file, manifest.slot(name)) for name in names)
    for name, digest in zip(names, ledger.objects.put_many(blobs), strict=True):
        if digest != _base_digest(manifest, name):
            raise WrongBase(
                f"tensor {name} in {folder} is not as it is in the base",
                remedy=NOT_OURS,
            )


def _require_room(ledger: Ledger, manifest: Manifest, names: list[str]) -> None:
    missing = [name for name in names if not ledger.objects.contains(_base_digest(manifest, name))]
    objects = tuple(manifest.slot(name).length for name in missing)
    text = len(manifest.to_json().encode())
    require_space(
        [
            Need(ledger.workspace.objects, objects, "the base's edited tensors"),
            Need(ledger.workspace.root, (2 * database_growth(text=text),), "the ledger"),
        ]
    )


def _base_digest(manifest: Manifest, name: str) -> str:
    manifest.slot(name)  # says so when there is no such tensor
    return manifest.tensors[name].digest


def _refuse_known(db: sqlite3.Connection, name: str, folder: Path) -> None:
    known = store.model_at(db, folder)
    if known is not None:
        remedy = f"use it under that name: --model {known.name}"
        raise UsageError(f"{folder} is registered already, as {known.name}", remedy=remedy)
    if any(model.name == name for model in store.models(db)):
        raise UsageError(f"another model is registered as {name}", remedy="choose another name")
