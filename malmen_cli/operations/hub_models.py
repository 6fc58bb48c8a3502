"""Models that came from the local hub cache: finding them again by where they came from, making working copies."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from malmen_cli.checkpoint.lock import PATIENCE
from malmen_cli.checkpoint.working_copy import make_working_copy
from malmen_cli.errors import UnknownName, UsageError
from malmen_cli.facts import printable
from malmen_cli.language_models.hub_cache import KNOWN_NAMES, Snapshot, find_snapshot, repositories
from malmen_cli.ledger import Ledger, ModelRecord, store
from malmen_cli.ledger.registration import check_name

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def origin_of(db: sqlite3.Connection, model: ModelRecord) -> dict[str, Any] | None:
    """Where a model's folder was copied from (repo, revision, snapshot); None for one that is edited in place."""
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
            same = str(origin.get("repo")).lower() in repos
        else:
            same = (origin.get("repo"), origin.get("revision")) == (snapshot.repo, snapshot.revision)
        found += [model] * same
    if len(found) > 1:
        names = ", ".join(model.name for model in found)
        raise UnknownName(f"{len(found)} models were copied from {printable(name)}: {names}", remedy="Name one of them")
    return found[0] if found else None


def name_for(name: str, snapshot: Snapshot) -> str:
    """What the working copy is called where nobody says: a known name as it stands, else the repository's last part."""
    return name.lower() if name.lower() in KNOWN_NAMES else plain_name(snapshot.repo.rpartition("/")[2])


def plain_name(text: str) -> str:
    """A name that may be registered, made of any text."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip(".-") or "model"


@contextmanager
def working_copy(
    ledger: Ledger, name: str, snapshot: Snapshot, command: str, timeout: float = PATIENCE
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A new folder of the workspace with the snapshot's model in it, and its origin for the register entry.

    The body registers it; a copy that is not registered in the end is removed.

    Raises:
        UsageError: the name is taken. UnsupportedModel, UnsafeFile: the snapshot cannot be copied. Locked: another
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
        make_working_copy(snapshot.folder, snapshot.blobs, target)
        try:
            folder = printable(str(snapshot.folder), limit=None)
            yield target, {"repo": snapshot.repo, "revision": snapshot.revision, "snapshot": folder}
        finally:
            with ledger.read() as db:
                unused = store.model_at(db, target) is None
            if unused:
                shutil.rmtree(target, ignore_errors=True)


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
    known, repo = name.lower() in KNOWN_NAMES, repositories(name)[0]
    if not known and not _REPOSITORY.fullmatch(name):
        return UnknownName(
            f"{message}, nor a known name", remedy="see malmen models list, or add it: malmen models add NAME FOLDER"
        )
    short = name.lower() if known else plain_name(repo.rpartition("/")[2])
    return UnknownName(
        f"{message}, nor in the local hub cache",
        remedy=f"fetch it with `hf download {repo}`, then run `malmen models add {short} {repo}`; "
        f"or name a folder that holds it: `malmen models add {short} FOLDER`",
    )
