"""`malmen revert`: take an entry, or some facts of it, out of the active set. Loads no torch for the newest entry."""

from __future__ import annotations

from typing import Annotated

import typer

from malmen_cli.cli.options import (
    DeviceOption,
    EntryArgument,
    JsonOption,
    LockTimeoutOption,
    ModelOption,
    QuietOption,
    WorkspaceOption,
    command_line,
    entry_json,
    open_ledger,
    short_id,
)
from malmen_cli.cli.output import epilog, plural, print_json, say_notes
from malmen_cli.errors import ExitCode
from malmen_cli.ledger import store


def register(app: typer.Typer) -> None:
    app.command(
        "revert",
        epilog=epilog(
            ExitCode.DONE,
            ExitCode.FAILED,
            ExitCode.USAGE,
            ExitCode.NO_WORKSPACE,
            ExitCode.LOCKED,
            ExitCode.VERIFICATION_FAILED,
            ExitCode.WRONG_BASE,
            ExitCode.INTERRUPTED,
        ),
    )(revert)


def revert(
    entry_id: EntryArgument,
    fact: Annotated[
        list[int] | None,
        typer.Option("--fact", metavar="N", help="Only this fact of it, as `show` numbers them; repeatable."),
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = "auto",
    lock_timeout: LockTimeoutOption = 0.0,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Take an entry's facts out of the model, as a new entry; the rest is what it would have been without them.

    \b
    Examples:
      malmen revert HEAD
      malmen revert 4f2a91
      malmen revert 4f2a91 --fact 3 --fact 17

    Reverting the newest entry puts the earlier bytes back. A revert can itself be reverted. A fact that had been
    superseded comes back when its superseder is reverted.
    """
    from malmen_cli.operations.models import find_model
    from malmen_cli.operations.revert import revert_entry

    with open_ledger(workspace, writing=True) as ledger:
        with ledger.read() as db:
            named = None if model is None else find_model(db, model)
            owner = store.resolve_entry(db, entry_id, None if named is None else named.id).model_id
            record = store.model_with_id(db, owner)
        # HEAD is resolved again once an interrupted entry is settled.
        done = revert_entry(
            ledger, record, entry_id, fact or [], command_line(), device=device, lock_timeout=lock_timeout
        )
    say_notes(done.settlement, done.warnings)
    if json:
        print_json(
            {
                "entry": entry_json(done.entry, record, head=True),
                "target": done.target.id,
                "removed": [ref.fact_digest for ref in done.removed],
                "revived": [ref.fact_digest for ref in done.revived],
                "unmoved": [ref.fact_digest for refs in done.unmoved.values() for ref in refs],
                "active": done.active,
                "from": "objects" if not done.solved else "model" if done.anew else "rows",
                "captured": done.captured,
                "warnings": done.warnings,
            }
        )
    elif quiet:
        print(done.entry.id)
    else:
        again = "the rest made anew with the model" if done.anew else "the rest solved again from stored rows"
        if done.captured:
            again += f", those of {plural(done.captured, 'fact')} captured anew"
        how = again if done.solved else "earlier bytes restored"
        print(
            f"Reverted {short_id(done.target)}: {plural(len(done.removed), 'fact')} out, {len(done.revived)} back, "
            f"{done.active:,} active in {record.name}; {how}."
        )
        for why, refs in done.unmoved.items():
            print(f"Not moved: {plural(len(refs), 'fact')}, {why}.")
        print(f"Recorded as {short_id(done.entry)}. Undo: malmen revert {short_id(done.entry)}")
