"""`malmen apply`: add a fact file to a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from malmen_cli.cli.check_tables import print_check
from malmen_cli.cli.display import BarDisplay
from malmen_cli.cli.downloading import fetcher
from malmen_cli.cli.fact_source import read_facts
from malmen_cli.cli.first_use import found_or_registered
from malmen_cli.cli.gates import print_gates, read_gates, say_failures
from malmen_cli.cli.method_options import (
    MethodOption,
    MethodSettingsOption,
    TextOption,
    check_method,
)
from malmen_cli.cli.options import (
    BatchTokensOption,
    DeviceOption,
    DownloadOption,
    EditorOption,
    FactsArgument,
    FormatOption,
    JsonOption,
    LockTimeoutOption,
    ModelOption,
    OnConflictOption,
    QuietOption,
    SplitOption,
    WorkspaceOption,
    command_line,
    entry_json,
    open_ledger,
    short_id,
)
from malmen_cli.cli.output import epilog, plural, print_json, say, say_notes, tell
from malmen_cli.errors import ExitCode, RefusedByGate, UsageError

if TYPE_CHECKING:
    from malmen_cli.operations.apply import Applied


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
            ExitCode.VERIFICATION_FAILED,
            ExitCode.WRONG_BASE,
            ExitCode.REFUSED_BY_GATE,
            ExitCode.INTERRUPTED,
        ),
    )(apply)


def apply(
    file: FactsArgument = None,
    split: SplitOption = None,
    model: ModelOption = None,
    download: DownloadOption = False,
    editor: EditorOption = None,
    method: MethodOption = None,
    method_settings: MethodSettingsOption = None,
    text: TextOption = None,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="PLAN", help="Apply a plan saved by malmen plan -o; refused when stale."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Do everything but write.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="DIR", help="Write an edited copy there; model and ledger stay as they are."),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            "--require",
            metavar="GATES",
            help="Write only if all of these hold, of new and of earlier facts, such as 'ES>=0.95,LS>=90%'.",
        ),
    ] = None,
    protect: Annotated[
        list[Path] | None,
        typer.Option(
            "--protect",
            metavar="FILE",
            help="Prompts whose answers must stay the base's: one a line, or a fact file. May be given again.",
        ),
    ] = None,
    format: FormatOption = None,
    on_conflict: OnConflictOption = None,
    sample: Annotated[int, typer.Option("--sample", min=0, help="Show answers to so many facts.")] = 5,
    check_old: Annotated[
        int, typer.Option("--check-old", min=0, help="Ask at most so many facts of earlier entries again.")
    ] = 256,
    batch_tokens: BatchTokensOption = None,
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
      malmen apply facts.jsonl --output ./gpt2-edited
      malmen apply facts.jsonl --method ultraedit        # without a trained editor
      malmen apply --plan plan.json
      malmen apply facts.jsonl --require "ES>=0.95,LS>=0.9" --protect prompts.txt
      malmen apply - --json < facts.jsonl

    All active facts are solved together from the base, so the result does not depend on the order of applies. A new
    target for the prompt of an active fact supersedes it. Nothing is asked: `malmen revert` undoes it. Where every
    fact is active already nothing happens, and the exit status is 0.

    Gates are ES, GS, LS (shares of the target's tokens) and UNCHANGED (of the base's own answers to unrelated prompts),
    with _GENERATED of free answers; each must hold of the new facts, and of all earlier ones that stay; with NEW_ or
    OLD_ of these alone. PROTECTED is the share of --protect's prompts whose free answer is the base's: all of them,
    unless --require says otherwise. A prompt that does not fit the model counts as wrong. Where a gate fails, or cannot
    be asked, nothing is written.
    """
    named = (file, split, model, editor, method, format, on_conflict)
    if plan is not None and any(given is not None for given in named):
        raise UsageError(
            "a saved plan names the facts, the model and the editor itself",
            remedy="Give --plan alone, or FILE and the options.",
        )
    if download and (plan is not None or dry_run or output is not None):
        raise UsageError(
            "--download is for an apply that may register a model, and this one will not",
            remedy="Leave it out; or add the model first: malmen models add NAME SOURCE --download.",
        )
    gates = read_gates(require, protect, file)
    asked = check_method(method, method_settings, text, editor)
    from malmen_cli.operations.models import find_model, pick_device
    from malmen_cli.operations.saved_plan import model_of, read_plan

    saved = None if plan is None else read_plan(plan)
    facts = (
        read_facts(file, split, workspace=workspace, format=format, on_conflict=on_conflict)
        if saved is None
        else saved.facts
    )
    from malmen_cli.operations.apply import ApplyOptions, apply_facts

    device = pick_device(device)
    entering = not dry_run and output is None
    makes_editor = asked is not None and not asked.method.trained
    with open_ledger(workspace, writing=entering) as ledger, BarDisplay() as bar:
        if saved is not None:
            record = model_of(ledger, saved)
        elif not (entering and (makes_editor or download)):  # a model that was registered now would have no editor
            with ledger.read() as db:
                record = find_model(db, model)
        else:
            fetch = fetcher(ledger, bar, quiet=quiet) if download else None
            record = found_or_registered(ledger, model, lock_timeout=lock_timeout, fetch=fetch)
        options = ApplyOptions(
            editor=editor if saved is None else saved.editor,
            method=None if asked is None else asked.request(),
            device=device,
            batch_tokens=batch_tokens,
            sample=sample,
            check_old=check_old,
            dry_run=dry_run,
            output=output,
            gates=gates,
            expected=None if saved is None else (saved.active_digest, saved.head),
            lock_timeout=lock_timeout,
            progress=bar,
        )
        refusal = None
        try:
            applied = apply_facts(ledger, record, facts, options, command_line())
        except RefusedByGate as error:
            applied, refusal = error.outcome, error
    _tell(applied, json=json, quiet=quiet)
    if refusal is not None:
        say_failures(refusal.outcome.verdicts)
        raise refusal
    if gates is not None and applied.verdicts is None:
        say("note: no gate was asked, since nothing changes")
    if applied.check is not None and applied.check.wrong:
        raise typer.Exit(ExitCode.FACTS_FAILED_CHECK)


def _tell(applied: Applied, *, json: bool, quiet: bool) -> None:
    say_notes(applied.settlement, applied.warnings)
    if json:
        print_json(_as_json(applied))
    elif quiet:
        if applied.entry is not None:
            print(applied.entry.id)
    else:
        _show(applied)


def _as_json(applied: Applied) -> dict[str, object]:
    proposal = applied.proposal
    return {
        "entry": None if applied.entry is None else entry_json(applied.entry, proposal.model, head=True),
        "model": proposal.model.name,
        "editor": proposal.editor.id,
        "duplicates": proposal.facts.duplicates,
        "conflicts_dropped": proposal.facts.conflicts_dropped,
        "new": len(proposal.additions.new),
        "already_active": len(proposal.additions.already_active),
        "superseded": len(proposal.additions.superseding),
        "active": applied.active,
        "check": None if applied.check is None else applied.check.as_dict(),
        "gates": None if applied.verdicts is None else applied.verdicts.as_dict(),
        "output": None if applied.output is None else str(applied.output),
        "warnings": applied.warnings,
    }


def _show(applied: Applied) -> None:
    proposal = applied.proposal
    additions, facts = proposal.additions, proposal.facts
    if facts.duplicates:
        say(f"{plural(facts.duplicates, 'repeated record')} merged")
    if facts.conflicts_dropped:
        say(f"{plural(facts.conflicts_dropped, 'conflicting record')} dropped (--on-conflict)")
    if applied.check is None:
        one = len(additions.already_active) == 1
        all_of_them = "the fact is" if one else f"all {len(additions.already_active):,} facts are"
        say(f"Nothing to do: {all_of_them} active already, and nothing was asked (malmen eval ID asks an entry's).")
        return
    if proposal.made is not None:
        say(f"note: {proposal.made.note}")
    print(
        f"{plural(len(additions.new), 'new fact')}, {len(additions.superseding)} superseding, "
        f"{len(additions.already_active)} active already; {applied.active:,} active in {proposal.model.name} by editor "
        f"{proposal.editor.id}\n"
    )
    print_check(applied.check)
    print()
    if applied.verdicts is not None:
        print_gates(applied.verdicts.as_dict(worst=False))
        if applied.verdicts.failed:
            return
        print()
    if applied.entry is not None:
        print(f"Applied as {short_id(applied.entry)}. Undo: malmen revert {short_id(applied.entry)}")
    elif applied.output is not None:
        tell(f"Edited copy: {applied.output}. {proposal.model.name} and its ledger are as they were.")
    else:
        print("Dry run: nothing was written.")
