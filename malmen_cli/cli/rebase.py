"""`malmen rebase`: move all active facts to another editor."""

from __future__ import annotations

from typing import Annotated

import typer

from malmen_cli.cli.check_tables import print_check
from malmen_cli.cli.completion import editor_ids
from malmen_cli.cli.display import BarDisplay
from malmen_cli.cli.method_options import MethodSettingsOption, TextOption, check_method
from malmen_cli.cli.options import (
    BatchTokensOption,
    DeviceOption,
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
from malmen_cli.cli.output import epilog, plural, print_json, say, say_notes
from malmen_cli.errors import ExitCode, UsageError


def register(app: typer.Typer) -> None:
    app.command(
        "rebase",
        epilog=epilog(
            ExitCode.DONE,
            ExitCode.FAILED,
            ExitCode.USAGE,
            ExitCode.FACTS_FAILED_CHECK,
            ExitCode.NO_WORKSPACE,
            ExitCode.LOCKED,
            ExitCode.VERIFICATION_FAILED,
            ExitCode.WRONG_BASE,
            ExitCode.INTERRUPTED,
        ),
    )(rebase)


def rebase(
    editor: Annotated[
        str | None, typer.Option("--editor", metavar="ID", autocompletion=editor_ids, help="The editor to move to.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", metavar="NAME", help="Move to an editor of this method; made where there is none yet."
        ),
    ] = None,
    method_settings: MethodSettingsOption = None,
    text: TextOption = None,
    model: ModelOption = None,
    sample: Annotated[int, typer.Option("--sample", min=0, help="Show answers to so many facts.")] = 5,
    check_facts: Annotated[
        int, typer.Option("--check-facts", min=0, help="Ask at most so many active facts before and after.")
    ] = 256,
    batch_tokens: BatchTokensOption = None,
    device: DeviceOption = "auto",
    lock_timeout: LockTimeoutOption = 0.0,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Move all active facts to another editor: captured and solved anew under it, as a new entry.

    \b
    Examples:
      malmen rebase --editor 3fd0
      malmen rebase --editor 3fd0 --model gpt2 --json
      malmen rebase --method ultraedit

    Layers that only the former editor edited go back to the base. To undo it, rebase to the former editor.
    """
    asked = check_method(method, method_settings, text, editor)
    if editor is None and asked is None:
        raise UsageError("no editor is named", remedy="Give --editor ID (malmen models show), or --method NAME.")
    from malmen_cli.operations.models import find_model, pick_device
    from malmen_cli.operations.rebase import rebase as move

    with open_ledger(workspace, writing=True) as ledger, BarDisplay() as bar:
        with ledger.read() as db:
            record = find_model(db, model)
        done = move(
            ledger,
            record,
            asked.request() if asked is not None else str(editor),
            command_line(),
            device=pick_device(device),
            batch_tokens=batch_tokens,
            check_facts=check_facts,
            sample=sample,
            lock_timeout=lock_timeout,
            progress=bar,
        )
    say_notes(done.settlement, done.warnings)
    if json:
        print_json(
            {
                "entry": None if done.entry is None else entry_json(done.entry, record, head=True),
                "model": record.name,
                "editor": done.editor.id,
                "former_editor": done.former,
                "active": done.active,
                "restored": done.restored,
                "check": None if done.check is None else done.check.as_dict(),
                "warnings": done.warnings,
            }
        )
    elif done.entry is None:
        why = "no fact is active" if not done.active else f"editor {done.editor.id} is in force already"
        say(f"Nothing to do: {why}.")
    elif quiet:
        print(done.entry.id)
    else:
        assert done.check is not None
        print(f"{plural(done.active, 'fact')} of {record.name} moved from editor {done.former} to {done.editor.id}\n")
        print_check(done.check, "active")
        print(f"\nRebased as {short_id(done.entry)}. Undo: malmen rebase --model {record.name} --editor {done.former}")
    if done.check is not None and done.check.wrong:
        raise typer.Exit(ExitCode.FACTS_FAILED_CHECK)
