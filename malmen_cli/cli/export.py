"""`malmen export`: an edited checkpoint, its difference to the base, or a LoRA adapter, in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from malmen_cli.cli.completion import states
from malmen_cli.cli.options import JsonOption, ModelOption, WorkspaceOption, open_ledger
from malmen_cli.cli.output import epilog, plural, print_json, say
from malmen_cli.errors import ExitCode, UsageError
from malmen_cli.facts import printable

if TYPE_CHECKING:
    from malmen_cli.ledger import ModelRecord
    from malmen_cli.operations.export import Exported


def register(app: typer.Typer) -> None:
    app.command(
        "export",
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
    )(export)


def export(
    entry_id: Annotated[
        str,
        typer.Argument(
            metavar="[ID]",
            help="Whose state: an entry (id, HEAD, HEAD~1, #7) or base.",
            autocompletion=states,
        ),
    ] = "HEAD",
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="A new folder.", show_default=False)
    ] = ...,  # type: ignore[assignment]
    kind: Annotated[
        Literal["full", "delta", "lora"],
        typer.Option("--as", help="A whole checkpoint, the difference to the base, or a PEFT adapter."),
    ] = "full",
    rank: Annotated[
        int | None,
        typer.Option(
            "--rank",
            metavar="R",
            min=1,
            help="Rank of the adapter (default: the smallest that keeps the shift to 1 %, at most 64).",
        ),
    ] = None,
    model: ModelOption = None,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the entry's id only.")] = False,
) -> None:
    """Write a state of a model to a new folder, with a model card: for use where there is no ledger.

    \b
    Examples:
      malmen export --output ./edited
      malmen export HEAD~1 --as lora --output ./adapter
      malmen export 6d0c819a5c --as delta --output ./delta

    full is loaded as the base is; lora by `peft`, an approximation (its error is stated); delta is added to the base's
    weights and gives the edited bytes. The folder is there whole or not at all; the ledger and the checkpoint stay.
    """
    from malmen_cli.operations.export import export as export_state
    from malmen_cli.operations.states import CHECKPOINT, named_state, owner

    if entry_id == CHECKPOINT:
        raise UsageError("the checkpoint is no state of the ledger", remedy="copy its folder, or name an entry")
    with open_ledger(workspace) as ledger:
        with ledger.read() as db:
            record = owner(db, model, entry_id)
            state = named_state(db, record, entry_id)
        exported = export_state(ledger, record, state, output, kind=kind, rank=rank)
    for warning in exported.warnings:
        say(f"warning: {warning}")
    if json:
        print_json(_as_json(exported, record))
    elif quiet:
        print(state.entry.id)
    else:
        _show(exported, record)


def _as_json(exported: Exported, model: ModelRecord) -> dict[str, Any]:
    return {
        "model": model.name,
        "entry": exported.state.entry.id,
        "number": exported.state.entry.number,
        "kind": exported.kind,
        "output": str(exported.target),
        "active_facts": len(exported.state.facts),
        "rank": exported.record.get("rank"),
        "relative_error": exported.record.get("relative_error"),
        "provenance": exported.record,
        "warnings": exported.warnings,
    }


def _show(exported: Exported, model: ModelRecord) -> None:
    record = exported.record
    how = f", rank {record['rank']}, relative error {record['relative_error']:.2%}" if "rank" in record else ""
    print(
        f"Exported {exported.state} of {model.name} ({plural(len(exported.state.facts), 'fact')}) as {exported.kind}"
        f"{how} to {printable(str(exported.target), limit=None)}"
    )
