"""Where a command may put its results: beside what belongs to a ledger or to a model, never into it. No torch."""

from __future__ import annotations

import os
from pathlib import Path

from malmen_cli.checkpoint.durable import require_writable
from malmen_cli.checkpoint.new_folder import refuse_existing
from malmen_cli.errors import UsageError
from malmen_cli.facts import printable
from malmen_cli.ledger import Ledger, store


def require_elsewhere(ledger: Ledger, target: Path) -> None:
    """Raise UsageError where `target` is or lies in the ledger's workspace or a registered model's folder, or is "-".

    A strange file among the objects is damage, gc offers one among the working copies as a leftover, and a file in a
    model's folder may be what its loading looks for.
    """
    if str(target) == "-":
        raise UsageError("this cannot be written to standard output", remedy="name a place for it")
    with ledger.read() as db:
        owned = {model.path: f"the model's own folder {model.path}" for model in store.models(db)}
    # After the models, of which working copies lie in the workspace.
    owned.setdefault(ledger.workspace.root, f"the workspace {ledger.workspace.root}")
    place = Path(os.path.realpath(target))  # `resolve` fails on links that lead back to themselves
    for folder, named in owned.items():
        if place.is_relative_to(os.path.realpath(folder)):
            raise UsageError(
                f"{printable(str(target), limit=None)} lies in {named}",
                remedy="name a place beside it: what is in there is the ledger's or the model's",
            )


def require_new_folder(ledger: Ledger, target: Path) -> None:
    """Raise UsageError where no new folder can be made at `target`, which is to belong to no ledger and no model."""
    require_elsewhere(ledger, target)
    refuse_existing(target)
    require_writable(target.absolute().parent)
