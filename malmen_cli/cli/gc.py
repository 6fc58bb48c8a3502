"""`malmen gc`: reclaim disk space, of the scopes it is told to and of nothing else. Loads no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
)
from malmen_cli.cli.output import epilog, plural, print_json, print_table, say, size
from malmen_cli.errors import ExitCode, UsageError
from malmen_cli.ledger import Ledger
from malmen_cli.ledger.collection import SCOPES, Item, Scope, collect, collectable

_MEANINGS: dict[Scope, str] = {
    "leftovers": "objects, files and folders of killed commands that nothing refers to",
    "training": "features and resumable states of interrupted trainings",
    "states": "tensors of past states: a revert to one solves again from rows",
    "editors": "editors that no entry used, but for each model's newest of each method",
    "evaluations": "what malmen eval has kept: scores and answers",
}
_LISTED = 40  # items; --json has them all


def register(app: typer.Typer) -> None:
    app.command(
        "gc",
        epilog=epilog(
            ExitCode.DONE,
            ExitCode.FAILED,
            ExitCode.USAGE,
            ExitCode.NO_WORKSPACE,
            ExitCode.LOCKED,
            ExitCode.INTERRUPTED,
        ),
    )(gc)


def gc(
    leftovers: Annotated[bool, typer.Option("--leftovers", help=f"Drop {_MEANINGS['leftovers']}.")] = False,
    training: Annotated[bool, typer.Option("--training", help=f"Drop {_MEANINGS['training']}.")] = False,
    states: Annotated[bool, typer.Option("--states", help=f"Drop {_MEANINGS['states']}.")] = False,
    editors: Annotated[bool, typer.Option("--editors", help=f"Drop {_MEANINGS['editors']}.")] = False,
    evaluations: Annotated[bool, typer.Option("--evaluations", help=f"Drop {_MEANINGS['evaluations']}.")] = False,
    model: OnlyModelOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be dropped, and drop nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; needed where nobody can answer.")] = False,
    lock_timeout: LockTimeoutOption = 0.0,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Reclaim disk space: drop what is named, after asking. Without a scope, show what each would free.

    \b
    Examples:
      malmen gc --leftovers --training --dry-run
      malmen gc --states --model gpt2
      malmen gc --leftovers --training --states --editors --yes

    Facts, their rows, the base and the newest state are never dropped, so every revert stays possible and gives the
    same weights (on the same device, thread count and versions). What is dropped is gone: this cannot be undone.
    """
    wanted = dict(zip(SCOPES, (leftovers, training, states, editors, evaluations), strict=True))
    scopes = [scope for scope in SCOPES if wanted[scope]]
    if yes and not scopes and not dry_run:
        raise UsageError("nothing to drop was named", remedy=f"give one or more of --{', --'.join(SCOPES)}")
    if model is not None and leftovers:
        raise UsageError("leftovers belong to no model", remedy="leave out --model or --leftovers")
    from malmen_cli.operations.models import find_model

    with open_ledger(workspace, writing=bool(scopes) and not dry_run) as ledger:
        with ledger.read() as db:
            record = None if model is None else find_model(db, model)
        found = collectable(ledger, scopes or SCOPES, record)
        if not scopes and not (json or quiet):
            shown = [scope for scope in SCOPES if model is None or scope != "leftovers"]
            of_scopes = {scope: [item for item in found if item.scope == scope] for scope in shown}
            print_table([(f"--{scope}", _amount(items), _MEANINGS[scope]) for scope, items in of_scopes.items()])
            say("Nothing was dropped: name one or more of these scopes.")
            return
        if dry_run or not scopes:
            _show(found, [], json, quiet, dry_run=True)
            return
        dropped = _drop(ledger, found, yes, lock_timeout)
    _show(found, dropped, json, quiet, dry_run=False)


def _drop(ledger: Ledger, found: Sequence[Item], yes: bool, lock_timeout: float) -> list[Item]:
    if not found:
        return []
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(
                f"this would drop {_amount(found)}, and nobody is there to ask",
                remedy="give --yes, or look first with --dry-run",
            )
        _list(found)
        if not typer.confirm(f"Drop {_amount(found)} for good?", err=True):
            say("Nothing was dropped.")
            raise typer.Exit(ExitCode.FAILED)
    return collect(ledger, found, command_line(), lock_timeout)


def _show(found: Sequence[Item], dropped: Sequence[Item], json: bool, quiet: bool, *, dry_run: bool) -> None:
    shown = found if dry_run else dropped
    if json:
        print_json(
            {
                "dry_run": dry_run,
                "items": [
                    {"scope": item.scope, "name": item.name, "what": item.what, "bytes": item.size} for item in shown
                ],
                "bytes": sum(item.size for item in shown),
                "kept": [item.name for item in found if item not in shown],
            }
        )
    elif quiet:
        for item in shown:
            print(item.name)
    elif dry_run:
        _list(found, out=True)
        print(f"Would drop {_amount(found)}. Nothing was dropped." if found else "There is nothing to drop.")
    else:
        print(f"Dropped {_amount(dropped)}." if dropped else "There is nothing to drop.")
        if kept := len(found) - len(dropped):
            say(f"note: {plural(kept, 'item')} kept: in use again since they were listed")


def _list(items: Sequence[Item], out: bool = False) -> None:
    """The items: as data on stdout, or for whoever is asked on stderr."""
    rows = [(item.scope, size(item.size), item.what) for item in items[:_LISTED]]
    if out:
        print_table(rows)
    else:
        for scope, amount, what in rows:
            say(f"  {scope:<11}  {amount:>10}  {what}")
    if len(items) > _LISTED:
        say(f"... and {len(items) - _LISTED:,} more (--json lists them all)")


def _amount(items: Sequence[Item]) -> str:
    return f"{plural(len(items), 'item')}, {size(sum(item.size for item in items))}"
