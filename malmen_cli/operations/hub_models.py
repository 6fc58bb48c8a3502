"""Models that are edited in a working copy: finding them again by where they came from, making the copies.

They come from the local hub cache, or from a folder of pickled weights.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from malmen_cli.checkpoint.lock import PATIENCE
from malmen_cli.checkpoint.pickled_files import pickled_start
from malmen_cli.errors import UnknownName, UnsafeFile, UnsupportedModel, UsageError
from malmen_cli.facts import printable
from malmen_cli.language_models.hub_cache import Snapshot, find_snapshot, is_complete, repositories
from malmen_cli.language_models.known_names import KNOWN_NAMES
from malmen_cli.ledger import Ledger, ModelRecord, store
from malmen_cli.ledger.registration import check_name
from malmen_cli.operations.working_copies import changed_files, copy_with_origin

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def origin_of(db: sqlite3.Connection, model: ModelRecord) -> dict[str, Any] | None:
    """Where a model's folder was copied from; None for one that is edited in place.

    Either repo, revision and snapshot, or folder; and of weights that were converted, which files they were.
    """
    origin = store.resolve_entry(db, "#1", model.id).details.get("origin")
    return origin if isinstance(origin, dict) else None


def copied_from(db: sqlite3.Connection, name: str, snapshot: Snapshot | None) -> ModelRecord | None:
    """The registered working copy of a repository (its id or known name), or of just this snapshot.

    Raises:
        UnknownName: several are.
    """
    repos = {repo.lower() for repo in repositories(name)}
    found = []
    for model in store.models(db):
        origin = origin_of(db, model)
        if origin is None:
            continue
        if snapshot is None:
            same = str(origin.get("repo") or "").lower() in repos  # what was converted has none
        else:
            same = (origin.get("repo"), origin.get("revision")) == (snapshot.repo, snapshot.revision)
        found += [model] * same
    if len(found) > 1:
        names = ", ".join(model.name for model in found)
        raise UnknownName(f"{len(found)} models were copied from {printable(name)}: {names}", remedy="Name one of them")
    return found[0] if found else None


def converted_from(db: sqlite3.Connection, folder: Path) -> ModelRecord | None:
    """The registered working copy of a folder whose weights are pickled.

    Raises:
        UnknownName: several are. UsageError: the folder holds other weights by now.
    """
    if pickled_start(folder) is None:
        return None
    path = str(folder.resolve())
    origins = ((model, origin_of(db, model)) for model in store.models(db))
    found = [(model, origin) for model, origin in origins if origin is not None and origin.get("folder") == path]
    if len(found) > 1:
        names = ", ".join(model.name for model, _ in found)
        raise UnknownName(f"{len(found)} models were copied from {printable(path)}: {names}", remedy="Name one of them")
    if not found:
        return None
    model, origin = found[0]
    changed = changed_files(folder, origin.get("converted", []))
    if changed:
        raise UsageError(
            f"{changed[0]} in {printable(path)} is not what {model.name} was converted from",
            remedy=f"name the copy itself: --model {model.name}; or convert what is there now, under another name: "
            f"malmen models add NAME {printable(path)}",
        )
    return model


def is_model_name(name: str) -> bool:
    """Whether this is a known name, or can be a repository's id (org/name)."""
    return name.lower() in KNOWN_NAMES or _REPOSITORY.fullmatch(name) is not None


def name_for(name: str, snapshot: Snapshot | None = None) -> str:
    """What the working copy is called where nobody says: a known name as it stands, else the repository's last part."""
    repo = repositories(name)[0] if snapshot is None else snapshot.repo
    return name.lower() if name.lower() in KNOWN_NAMES else plain_name(repo.rpartition("/")[2])


def plain_name(text: str) -> str:
    """A name that may be registered, made of any text."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".-") or "model"


@contextmanager
def working_copy(
    ledger: Ledger, name: str, source: Snapshot | Path, command: str, timeout: float = PATIENCE
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A new folder of the workspace with the source's model in it, and its origin for the register entry.

    Pickled weights, where there are no others, are converted. The body registers the copy; one that is not registered
    in the end is removed.

    Args:
        source: a hub cache's snapshot, or a folder.

    Raises:
        UsageError: the name is taken. UnsupportedModel, UnsafeFile: the source cannot be copied. Locked: another
        process holds the workspace for longer than `timeout` seconds.
    """
    check_name(name)
    target = ledger.workspace.checkpoints / name
    with ledger.hold(command, timeout):
        with ledger.read() as db:
            if name in {model.name for model in store.models(db)}:
                raise UsageError(f"another model is registered as {name}", remedy="choose another name")
            registered = store.model_at(db, target)
        if registered is None and target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)  # a killed command made it, and nobody ever used it
        try:
            origin = copy_with_origin(source, target)
            try:
                yield target, origin
            finally:
                with ledger.read() as db:
                    unused = store.model_at(db, target) is None
                if unused:
                    shutil.rmtree(target, ignore_errors=True)
        except (UnsupportedModel, UnsafeFile) as error:
            if isinstance(source, Snapshot) and not is_complete(source.folder):
                error.remedy = f"fetch what is missing: malmen models add {name} {source.repo} --download"
            raise


def unknown_model(name: str) -> UnknownName:
    """The error for a name that leads to no model, with the very commands that would make it lead to one."""
    shown = printable(name)
    message = f"there is no model {shown!r}: neither registered, nor a folder"
    snapshot = find_snapshot(name)
    if snapshot is not None:
        return UnknownName(
            f"{message}; but {snapshot.repo} is in the local hub cache",
            remedy=f"register a working copy of it: malmen models add {name_for(name, snapshot)} {snapshot.repo}",
        )
    if not is_model_name(name):
        return UnknownName(
            f"{message}, nor a known name", remedy="see malmen models list, or add it: malmen models add NAME FOLDER"
        )
    short, repo = name_for(name), repositories(name)[0]
    return UnknownName(
        f"{message}, nor in the local hub cache",
        remedy=f"fetch it: `malmen models add {short} {repo} --download` (or `hf download {repo}`, then the same "
        f"without --download); or name a folder that holds it: `malmen models add {short} FOLDER`",
    )
