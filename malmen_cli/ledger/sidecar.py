"""The sidecar `.malmen.json`: says beside an edited checkpoint which ledger edited it.

It is there while the checkpoint differs from the base, written before the first byte changes. Another ledger that
registers such a folder warns, and keeps the earlier sidecar inside its own to put it back.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import stat
from pathlib import Path
from typing import Any

from malmen_cli.checkpoint.durable import remove_durably, write_durably
from malmen_cli.checkpoint.safetensors_file import open_regular
from malmen_cli.errors import MalmenError, UnsafeFile
from malmen_cli.ledger import store
from malmen_cli.ledger.database import Ledger
from malmen_cli.ledger.records import ModelRecord
from malmen_cli.ledger.workspace import Workspace, upwards

SIDECAR = ".malmen.json"
_LARGEST = 1 << 20  # bytes


def read_sidecar(folder: Path) -> dict[str, Any] | None:
    """The sidecar's content; None without one, an empty table for one that cannot be made sense of."""
    try:
        return _read(folder / SIDECAR)
    except (OSError, UnsafeFile):
        return {}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        path.lstat()
    except FileNotFoundError:
        return None
    with open_regular(path) as file:
        return _content(file.read(_LARGEST + 1))


def check_sidecar(folder: Path) -> None:
    """Raises UnsafeFile where something stands in the sidecar's place that can be neither read nor put back."""
    path = folder / SIDECAR
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise UnsafeFile(f"{path} is not a plain file", remedy="remove it, and ask where it came from")


def _content(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data) if len(data) <= _LARGEST else None
    except (ValueError, RecursionError):
        content = None
    return content if isinstance(content, dict) else {}


def refresh_sidecar(ledger: Ledger, model: ModelRecord, *, edited: bool) -> None:
    """Make the sidecar say what holds: that this ledger has edited the checkpoint, or (again) what stood before."""
    path = model.path / SIDECAR
    try:
        current = _read(path)
    except (OSError, UnsafeFile) as error:
        _refuse_failing_disk(path, error)
        current = {}
    ours = {"ledger": ledger.id(), "model": model.name, "base_digest": model.base_digest}
    is_ours = current is not None and ours.items() <= current.items()
    if edited and (current is None or not is_ours or current.get("workspace") != str(ledger.workspace.root)):
        ours |= {"workspace": str(ledger.workspace.root)}
        said = _bytes(ours | {"earlier": current.get("earlier") if current is not None and is_ours else current})
        # A stranger's may be so large or so deep that with it this one could not be read again.
        write_durably(path, said if _content(said) else _bytes(ours | {"earlier": {}}))
    elif not edited and current is not None and is_ours:
        if current.get("earlier"):
            write_durably(path, _bytes(current["earlier"]))
        else:
            remove_durably(path)


def _refuse_failing_disk(path: Path, error: Exception) -> None:
    """What a disk fails to give is not nothing: written over, it would be lost, with the earlier sidecar in it."""
    for cause in (error, error.__cause__):
        if isinstance(cause, OSError) and cause.errno == errno.EIO:
            remedy = "check the disk, then run the command again"
            raise MalmenError(f"cannot read {path}: {cause.strerror}", remedy=remedy) from error


def warning_about(folder: Path) -> str | None:
    """What to tell a user who registers a folder that a ledger has edited; None for one without a sidecar."""
    sidecar = read_sidecar(folder)
    if sidecar is None:
        return None
    return (
        f"{folder} was edited by the malmen workspace {sidecar.get('workspace', 'of somebody else')!a}: "
        "its edits become part of this base, and neither ledger can edit after the other"
    )


def edited_by_another(ledger: Ledger, folder: Path) -> str | None:
    """The workspace of another ledger that has edited the folder's checkpoint last, by its sidecar; None without."""
    sidecar = read_sidecar(folder)
    if sidecar is None or sidecar.get("ledger") == ledger.id():
        return None
    root = sidecar.get("workspace")
    return root if isinstance(root, str) else "of somebody else"


def moved_to(ledger: Ledger, folder: Path) -> str | None:
    """The name of the ledger's own model whose edited checkpoint the folder is, by its sidecar, where that model's
    folder is gone; else None."""
    sidecar = read_sidecar(folder) or {}
    if sidecar.get("ledger") != ledger.id():
        return None
    with ledger.read() as db:
        gone = (model.name for model in store.models(db) if not model.path.exists())
        return next((name for name in gone if name == sidecar.get("model")), None)


def original_of(ledger: Ledger, folder: Path) -> str | None:
    """The workspace that edits the folder's checkpoint, where the ledger's own is a copy of it: it is there, with the
    same id, and knows the model there. None where there is no such, or where it was moved.

    The sidecar names it; of a base, which has none, it is the nearest workspace above the folder.
    """
    sidecar = read_sidecar(folder)
    if sidecar is None:
        above = upwards(folder)
        root = None if above is None else str(above.root)
    else:
        root = sidecar.get("workspace") if sidecar.get("ledger") == ledger.id() else None
    if not isinstance(root, str):
        return None
    try:
        if ledger.workspace.root.samefile(root):
            return None
        with Ledger.open(Workspace(Path(root))) as other, other.read() as db:
            # A folder that was copied with its sidecar is nobody else's.
            return root if other.id() == ledger.id() and store.model_at(db, folder) is not None else None
    except (MalmenError, OSError, ValueError, sqlite3.Error):
        return None


def _bytes(content: object) -> bytes:
    """Empty for what nests too deeply to be written. Not indented: that would make deep nesting large."""
    try:
        return (json.dumps(content, sort_keys=True) + "\n").encode()
    except RecursionError:
        return b""
