"""`malmen apply`: add a fact file to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from malmen_cli.cli.display import BarDisplay
from malmen_cli.cli.options import (
    DeviceOption,
    FactsArgument,
    JsonOption,
    LockTimeoutOption,
    ModelOption,
    OnConflictOption,
    QuietOption,
    WorkspaceOption,
    command_line,
    entry_json,
    open_ledger,
    short_id,
)
from malmen_cli.cli.output import epilog, percent, plural, print_json, print_table, say
from malmen_cli.errors import ExitCode
from malmen_cli.facts import printable, read_fact_set

if TYPE_CHECKING:
    from malmen_cli.ledger import ModelRecord
    from malmen_cli.operations.apply import Applied

SHOWN_WRONG = 10
"""Facts that are still wrong and are listed; `--json` has them all."""


def register(app: typer.Typer) -> None:
    app.command(
        "apply",
        epilog=epilog(
            ExitCode.DONE,
            ExitCode.FAILED,
            ExitCode.USAGE,
            ExitCode.FACTS_FAILED_CHECK,
            ExitCode.NO_WORKSPACE,
            ExitCode.LOCKED,
            ExitCode.WRONG_BASE,
            ExitCode.INTERRUPTED,
        ),
    )(apply)


def apply(
    file: FactsArgument,
    model: ModelOption = None,
    editor: Annotated[
        str | None,
        typer.Option("--editor", metavar="ID", help="The editor (default: the one in force, else the newest)."),
    ] = None,
    on_conflict: OnConflictOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but write.")] = False,
    sample: Annotated[int, typer.Option("--sample", min=0, help="Show answers to so many facts.")] = 5,
    check_old: Annotated[
        int, typer.Option("--check-old", min=0, help="Ask at most so many facts of earlier entries again.")
    ] = 256,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", min=1, help="Padded tokens per model batch.")] = 1024,
    device: DeviceOption = "auto",
    lock_timeout: LockTimeoutOption = 0.0,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Add a fact file to a model's active facts and write the edited checkpoint, as a new entry of the ledger.

    \b
    Examples:
      malmen apply facts.jsonl
      malmen apply facts.jsonl --model gpt2 --dry-run
      malmen apply - --json < facts.jsonl

    All active facts are solved together from the base, so the result does not depend on the order of applies. A new
    target for the prompt of an active fact supersedes it. Nothing is asked: `malmen revert` undoes it.
    """
    facts = read_fact_set("-" if str(file) == "-" else file, on_conflict=on_conflict)
    from malmen_cli.operations.apply import ApplyOptions, apply_facts
    from malmen_cli.operations.models import find_or_register, pick_device

    with open_ledger(workspace, writing=True) as ledger, BarDisplay() as bar:
        record, registration = find_or_register(ledger, model, command_line())
        if registration is not None:
            say(f"Registered {record.path} as {record.name}")
            if registration.warning:
                say(f"warning: {registration.warning}")
        options = ApplyOptions(
            editor=editor,
            device=pick_device(device),
            batch_tokens=batch_tokens,
            sample=sample,
            check_old=check_old,
            dry_run=dry_run,
            lock_timeout=lock_timeout,
            progress=bar,
        )
        applied = apply_facts(ledger, record, facts, options, command_line())
    if applied.settlement is not None:
        say(f"note: {applied.settlement}")
    for warning in applied.warnings:
        say(f"warning: {warning}")
    if json:
        print_json(_as_json(applied, record, facts.duplicates, facts.conflicts_dropped))
    elif quiet:
        if applied.entry is not None:
            print(applied.entry.id)
    else:
        _show(applied, record, facts.duplicates, facts.conflicts_dropped)
    if applied.check is not None and applied.check.wrong:
        raise typer.Exit(ExitCode.FACTS_FAILED_CHECK)


def _as_json(applied: Applied, model: ModelRecord, duplicates: int, conflicts_dropped: int) -> dict[str, object]:
    return {
        "entry": None if applied.entry is None else entry_json(applied.entry, model, head=True),
        "model": model.name,
        "editor": applied.editor.id,
        "duplicates": duplicates,
        "conflicts_dropped": conflicts_dropped,
        "new": len(applied.additions.new),
        "already_active": len(applied.additions.already_active),
        "superseded": len(applied.additions.superseding),
        "active": applied.active,
        "check": None if applied.check is None else applied.check.as_dict(),
        "warnings": applied.warnings,
    }


def _show(applied: Applied, model: ModelRecord, duplicates: int, conflicts_dropped: int) -> None:
    additions = applied.additions
    if duplicates:
        say(f"{plural(duplicates, 'exact duplicate')} dropped")
    if conflicts_dropped:
        say(f"{plural(conflicts_dropped, 'conflicting record')} dropped (--on-conflict)")
    if applied.check is None:
        say(f"Nothing to do: all {plural(len(additions.already_active), 'fact')} are active already.")
        return
    print(
        f"{plural(len(additions.new), 'new fact')}, {len(additions.superseding)} superseding, "
        f"{len(additions.already_active)} active already; {applied.active:,} active in {model.name}"
    )
    check = applied.check
    if check.answers:
        print()
        print_table(
            [[printable(text, 44) for text in (a.prompt, a.target, a.before, a.after)] for a in check.answers],
            header=("prompt", "target", "before", "after"),
        )
    print()
    rows = [
        (when, *map(percent, (scores.edit_success, scores.generalization, scores.locality)))
        for when, scores in (("before", check.before), ("after", check.after))
    ]
    print_table(rows, header=("these facts", "ES", "GS", "LS"))
    if check.checked_old:
        print(f"{plural(check.checked_old, 'earlier fact')} asked again: ES {percent(check.old_success)}")
    if check.wrong:
        print(f"\nstill wrong: {plural(len(check.wrong), 'fact')}")
        print_table(
            [
                (
                    "",
                    "new" if wrong.new else "earlier",
                    *(printable(t, 44) for t in (wrong.prompt, wrong.target, wrong.answer)),
                )
                for wrong in check.wrong[:SHOWN_WRONG]
            ],
            header=("", "", "prompt", "target", "answer"),
        )
        if len(check.wrong) > SHOWN_WRONG:
            print(f"  ... and {len(check.wrong) - SHOWN_WRONG} more (malmen show --json)")
    print()
    if applied.entry is None:
        print("Dry run: nothing was written.")
    else:
        print(f"Applied as {short_id(applied.entry)}. Undo: malmen revert {short_id(applied.entry)}")
