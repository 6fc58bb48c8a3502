"""Telling the ledger where a model's folder lies now: it was moved, or copied together with its workspace."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from malmen_cli.checkpoint.lock import PATIENCE, checkpoint_lock
from malmen_cli.errors import NOT_OURS, UsageError, WrongBase
from malmen_cli.ledger import store
from malmen_cli.ledger.connection import check_utf8
from malmen_cli.ledger.database import Ledger
from malmen_cli.ledger.records import ModelRecord
from malmen_cli.ledger.sidecar import original_of, refresh_sidecar
from malmen_cli.ledger.transactions import (
    Settlement,
    is_edited,
    require_as_head,
    require_own,
    require_settleable,
    settle,
)


def move_model(
    ledger: Ledger, model: ModelRecord, folder: Path, *, command: str = "", timeout: float = PATIENCE
) -> tuple[ModelRecord, Settlement | None]:
    """Have the ledger look for a model's checkpoint in another folder, which holds it exactly as the head says.

    No file of the checkpoint is moved or changed, but for an interrupted entry, which is settled there.

    Raises:
        UsageError: another model is registered there. WrongBase: it is not as the ledger left it, naming every
            difference, or another workspace's. Locked: another process holds the workspace, this folder or the former.
    """
    folder = Path(os.path.realpath(folder))  # `resolve` fails on links that lead back to themselves
    check_utf8(folder)
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", remedy="name the folder that holds the model now")
    with ExitStack() as locks:
        locks.enter_context(ledger.hold(command, timeout))
        with ledger.read() as db:
            model = store.model_with_id(db, model.id)  # it may have been moved since it was looked up
            there = store.model_at(db, folder)
        if there is not None and there.id != model.id:
            raise UsageError(f"{folder} is registered already, as {there.name}", remedy="name another folder")
        if model.path != folder and model.path.is_dir() and original_of(ledger, model.path) is None:
            with suppress(UsageError):  # nobody writes where nothing can be written
                locks.enter_context(checkpoint_lock(model.path, command, timeout))
        locks.enter_context(checkpoint_lock(folder, command, timeout))
        moved = replace(model, path=folder)
        require_own(ledger, moved)
        try:
            require_settleable(ledger, moved)  # settled elsewhere, an interrupted entry would be lost to its own folder
            settlement = settle(ledger, moved)
            if settlement is not None:  # else it has just been looked through
                require_as_head(ledger, moved)
        except WrongBase as error:
            if error.remedy != NOT_OURS:
                raise
            raise WrongBase(error.message, remedy="name the folder that holds the model as malmen left it") from None
        with ledger.write() as db:
            db.execute("UPDATE models SET path = ? WHERE id = ?", (str(folder), model.id))
            state = store.state(db, model.id)
        refresh_sidecar(ledger, moved, edited=is_edited(moved, state))
    return moved, settlement
