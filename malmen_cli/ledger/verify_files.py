"""The files that the ledger speaks of: objects, editors, checkpoints; every byte of them, or at a glance."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Mapping
from pathlib import Path

from malmen_cli.checkpoint.digests import digest_file, short
from malmen_cli.checkpoint.manifest import Manifest, check_checkpoint
from malmen_cli.errors import UnsafeFile
from malmen_cli.ledger import store
from malmen_cli.ledger.collection import needed_objects
from malmen_cli.ledger.database import Ledger
from malmen_cli.ledger.records import ModelRecord
from malmen_cli.ledger.registration import EDITOR_FILES, editor_digest
from malmen_cli.ledger.verification import Verification


def verify_objects(
    ledger: Ledger, db: sqlite3.Connection, models: list[ModelRecord], found: Verification, quick: bool
) -> None:
    """Every object against its name; those that the ledger refers to are there. At a glance: there, and of their size.

    Args:
        models: all of the ledger's that can be read.
    """
    present = set()
    for digest in () if quick else ledger.objects:
        present.add(digest)
        found.checked["objects"] += 1
        found.attempt(f"object {short(digest)}", _verify_object, ledger, digest, found)
    deltas = "SELECT before FROM parameter_deltas UNION SELECT after FROM parameter_deltas"
    referenced = {str(row[0]) for row in db.execute(f"{deltas} UNION SELECT object FROM row_packs")}
    needed: set[str] = set()
    for model in models:
        found.attempt(f"model {model.name}", _add_base_objects, db, model, referenced)
        found.attempt(f"model {model.name}", _add_needed, db, model, needed)
    if quick:
        present = {digest for digest in referenced if _is_there(ledger, digest, found)}
    # What gc dropped is absent on purpose, but only where nothing of today stands on it.
    missing = referenced - present
    for digest in sorted(missing - (store.dropped_objects(db, missing) - needed)):
        found.report(f"object {short(digest)}", "is missing")
    if quick:
        for model in models:
            found.attempt(f"model {model.name}", _verify_sizes, ledger, db, model, found)
    else:
        _name_strangers(ledger, present, found)


def _add_base_objects(db: sqlite3.Connection, model: ModelRecord, referenced: set[str]) -> None:
    referenced.update(model.manifest.tensors[name].digest for name in store.base_tensors(db, model.id))


def _add_needed(db: sqlite3.Connection, model: ModelRecord, needed: set[str]) -> None:
    needed.update(needed_objects(db, model))


def _verify_object(ledger: Ledger, digest: str, found: Verification) -> None:
    path = ledger.objects.path(digest)
    where = f"object {short(digest)}"
    if not _is_plain(path):
        found.report(where, f"is not a plain file ({path})")
    else:
        found.expect(digest_file(path) == digest, where, f"its bytes were changed ({path})")


def _is_there(ledger: Ledger, digest: str, found: Verification) -> bool:
    found.checked["objects"] += 1
    return bool(ledger.objects.size(digest)) and _is_plain(ledger.objects.path(digest))


def _verify_sizes(ledger: Ledger, db: sqlite3.Connection, model: ModelRecord, found: Verification) -> None:
    """A tensor's objects have the length of its slot."""
    query = (
        "SELECT tensor, before, after FROM parameter_deltas JOIN entries ON entries.id = entry_id WHERE model_id = ?"
    )
    sizes: dict[str, int] = {}
    for row in db.execute(query, (model.id,)):
        slot = model.manifest.slot(row["tensor"])
        sizes |= {row["before"]: slot.length, row["after"]: slot.length}
    for digest, size in sorted(sizes.items()):
        here = ledger.objects.size(digest)
        found.expect(here in (None, size), f"object {short(digest)}", f"has {here} bytes, expected {size}")


def _name_strangers(ledger: Ledger, present: set[str], found: Verification) -> None:
    """Files among the objects whose name is no object's, or another folder's. Hidden ones are the file system's."""
    known = {ledger.objects.path(digest) for digest in present}
    for path in sorted(ledger.objects.root.rglob("*")):
        if path not in known and not path.name.startswith(".") and not path.is_dir():
            where = f"objects/{path.relative_to(ledger.objects.root)}"
            found.report(where, "is not the name of an object there: it was renamed, moved or put there")


def verify_editor(ledger: Ledger, row: sqlite3.Row, found: Verification, quick: bool) -> None:
    """An editor's two files against its digest; at a glance, that they are there."""
    found.checked["editors"] += 1
    where = f"editor {row['id']}"
    folder = ledger.workspace.editors / str(row["id"])
    missing = [name for name in EDITOR_FILES if not _is_plain(folder / name)]
    if missing:
        found.report(where, f"{folder} does not hold an editor: {' and '.join(missing)} cannot be read")
    elif not quick:
        found.expect(editor_digest(folder) == row["digest"], where, "its files were changed")


def verify_checkpoint(model: ModelRecord, state: Mapping[str, str], found: Verification, quick: bool) -> None:
    """The model's folder against its manifest with the tensors of `state`; at a glance, its sizes and headers."""
    found.checked["checkpoints"] += 1
    if not model.path.is_dir():
        where = f"it is gone; where it was moved to, malmen models move {model.name} FOLDER says"
        return found.report(f"checkpoint {model.path}", where)
    differences = _glance(model.path, model.manifest) if quick else check_checkpoint(model.path, model.manifest, state)
    for difference in differences:
        found.report(f"checkpoint {model.path}", difference)


def _glance(folder: Path, manifest: Manifest) -> list[str]:
    differences = []
    for name, weights in manifest.weights.items():
        path = folder / name
        try:
            size = path.lstat().st_size
            if not _is_plain(path):
                differences.append(f"{name} is not a plain file")
            elif size != weights.size:
                differences.append(f"{name} has {size} bytes, expected {weights.size}")
            elif digest_file(path, 0, weights.header_size) != weights.header_digest:
                differences.append(f"the header of {name} was changed")
        except (OSError, UnsafeFile) as error:
            differences.append(f"{name} cannot be read ({error})")
    return differences + [f"{name} is missing" for name in manifest.own_others if not (folder / name).is_file()]


def _is_plain(path: Path) -> bool:
    """A regular file and no link: a pipe would never end, and a link's target is somebody else's to change."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
