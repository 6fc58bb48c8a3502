"""`malmen recover`: settle what a killed command left half done. Loads no torch."""

from __future__ import annotations

from typing import Annotated

import typer

from malmen_cli.cli.options import (
    JsonOption,
    LockTimeoutOption,
    OnlyModelOption,
    QuietOption,
    WorkspaceOption,
    command_line,
    open_ledger,
    short_id,
)
from malmen_cli.cli.output import complain, epilog, plural, print_json, say
from malmen_cli.errors import NOT_OURS, ExitCode
from malmen_cli.facts import printable
from malmen_cli.ledger import store
from malmen_cli.ledger.recovery import Recovery
from malmen_cli.ledger.recovery import recover as recover_model


def register(app: typer.Typer) -> None:
    app.command(
        "recover",
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
    )(recover)


def recover(
    model: OnlyModelOption = None,
    restore: Annotated[
        bool, typer.Option("--restore", help="Put edited layers back where something else has changed them.")
    ] = False,
    lock_timeout: LockTimeoutOption = 0.0,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Settle what a killed command left half done: completed, or withdrawn, never in between.

    \b
    Examples:
      malmen recover
      malmen recover --model gpt2
      malmen recover --restore                  # after something else wrote over the edited checkpoint

    Every writing command does this first; recover does it alone, for every model unless one is named. It removes
    temporary files that were left beside the weights, and says whether the checkpoint is as the ledger's head says.

    The ledger keeps the bytes of edited layers, and no others: --restore writes them over whatever is there, if that
    makes the checkpoint what the head says, and writes nothing else. Of what the checkpoint then holds it keeps again
    whatever the ledger has lost.
    """
    from malmen_cli.operations.models import find_model

    with open_ledger(workspace, writing=True) as ledger:
        with ledger.read() as db:
            chosen = store.models(db) if model is None else [find_model(db, model)]
        found = [recover_model(ledger, record, command_line(), lock_timeout, restore=restore) for record in chosen]
    if json:
        print_json([_as_json(recovery) for recovery in found])
    elif quiet:
        for recovery in found:
            if recovery.settlement is not None:
                print(recovery.settlement.entry.id)
    else:
        _show(found)
    errors = [recovery.error for recovery in found if recovery.error is not None]
    for error in errors:
        complain(error.message, error.remedy)
    if errors:
        raise typer.Exit(errors[0].exit_code)
    if any(recovery.differences for recovery in found):
        raise typer.Exit(ExitCode.WRONG_BASE)


def _show(found: list[Recovery]) -> None:
    if not found:
        say("No model is registered, so there is nothing to settle.")
    for recovery in found:
        name = recovery.model.name
        if recovery.settlement is not None:
            entry = recovery.settlement.entry
            print(f"{name}: the interrupted {entry.kind} {short_id(entry)} was {recovery.settlement.outcome}")
        elif recovery.error is None:
            print(f"{name}: nothing to settle")
        if recovery.leftovers:
            print(f"{name}: {plural(len(recovery.leftovers), 'temporary file')} removed")
        if recovery.restored:
            print(f"{name}: {plural(len(recovery.restored), 'tensor')} restored")
        if recovery.kept:
            print(f"{name}: {plural(len(recovery.kept), 'tensor')} that the ledger had lost kept again")
        for difference in recovery.differences:
            print(f"{name}: {printable(difference, limit=None)}")
        if recovery.differences:
            say(f"{name} is not as its ledger left it; {NOT_OURS}")


def _as_json(recovery: Recovery) -> dict[str, object]:
    settlement = recovery.settlement
    return {
        "model": recovery.model.name,
        "settled": None
        if settlement is None
        else {"entry": settlement.entry.id, "kind": settlement.entry.kind, "outcome": settlement.outcome},
        "leftovers": recovery.leftovers,
        "restored": recovery.restored,
        "kept": recovery.kept,
        "differences": recovery.differences,
        "error": None if recovery.error is None else recovery.error.message,
    }
