"""`malmen plan`: what an apply would do, writing nothing."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from malmen_cli.cli.display import BarDisplay
from malmen_cli.cli.fact_source import read_facts
from malmen_cli.cli.method_options import (
    Asked,
    MethodOption,
    MethodSettingsOption,
    TextOption,
    check_method,
)
from malmen_cli.cli.options import (
    BatchTokensOption,
    DeviceOption,
    EditorOption,
    FactsArgument,
    FormatOption,
    JsonOption,
    ModelOption,
    OnConflictOption,
    QuietOption,
    SplitOption,
    WorkspaceOption,
    open_ledger,
)
from malmen_cli.cli.output import epilog, percent, plural, print_json, print_table, say, size
from malmen_cli.errors import ExitCode, UsageError
from malmen_cli.facts import printable

if TYPE_CHECKING:
    from malmen_cli.facts import FactSet
    from malmen_cli.ledger import Ledger, ModelRecord
    from malmen_cli.operations.active import Chosen, Proposal
    from malmen_cli.operations.plan import Choice, Forecast, Plan, Trial

PARTS = {
    "libraries": "libraries",
    "weights": "weights",
    "base_copies": "edited layers",
    "editor": "editor",
    "solve": "solve",
    "batch": "one batch",
}
"""A memory plan's parts, in words; of the last two the larger one counts. An apply's rows are on disk."""

SHOWN = 5
"""Facts listed per table; `--json` has them all."""


def register(app: typer.Typer) -> None:
    app.command(
        "plan",
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
    )(plan)


def plan(
    file: FactsArgument = None,
    split: SplitOption = None,
    model: ModelOption = None,
    editor: EditorOption = None,
    method: MethodOption = None,
    method_settings: MethodSettingsOption = None,
    text: TextOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PLAN", help="Save the plan there, for malmen apply --plan PLAN."),
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Only count facts and reckon what they would take: no model is loaded, but where an editor of "
            "--method must be made.",
        ),
    ] = False,
    format: FormatOption = None,
    on_conflict: OnConflictOption = None,
    batch_tokens: BatchTokensOption = None,
    device: DeviceOption = "auto",
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what an apply would do, and what it would cost, without writing anything.

    \b
    Examples:
      malmen plan facts.jsonl
      malmen plan facts.jsonl --model gpt2 -o plan.json
      malmen plan --split products --quick
      malmen plan facts.jsonl --method ultraedit
      malmen apply --plan plan.json

    The facts' rows are captured and solved for real. Of every new fact the linear residual (how much of its wanted
    change the solve leaves out) and the leverage (how freely the solve can follow it) are shown: they tell crowded
    facts, not whether the model will say them. A saved plan is refused once the ledger has moved on.
    """
    from malmen_cli.operations.saved_plan import refuse_other_files, save_plan

    if output is not None:
        refuse_other_files(output)
    asked = check_method(method, method_settings, text, editor)
    facts = read_facts(file, split, workspace=workspace, format=format, on_conflict=on_conflict)
    from malmen_cli.operations.models import find_model
    from malmen_cli.operations.places import require_elsewhere
    from malmen_cli.operations.plan import as_dict, plan_facts

    with open_ledger(workspace) as ledger, BarDisplay() as bar:
        with ledger.read() as db:
            record = find_model(db, model)
        if output is not None:
            require_elsewhere(ledger, output)
        trial = None if quick else _trial(device, batch_tokens, bar)
        reckoned = _reckoned(device, batch_tokens) if quick and (output is not None or not quiet) else None
        chosen = editor if asked is None else _by_method(asked, record, facts, output, device, batch_tokens, bar)
        planned = plan_facts(ledger, record, facts, chosen, trial, reckoned)
        if output is not None:
            save_plan(output, planned.proposal)
    if planned.proposal.made is not None:
        say(f"note: {planned.proposal.made.note}; it is kept nowhere yet")
    for warning in planned.warnings:
        say(f"warning: {warning}")
    if json:
        print_json(as_dict(planned))
    elif quiet:
        additions = planned.proposal.additions
        for fact in [*additions.new, *(new for new, _ in additions.superseding)]:
            print(fact.fact_digest)
    else:
        _show(planned)
    if output is not None:
        say(f"Saved. Apply it: malmen apply --plan {shlex.quote(str(output))}")


def _by_method(
    asked: Asked,
    model: ModelRecord,
    facts: FactSet,
    saved: Path | None,
    device: str,
    batch_tokens: int | None,
    bar: BarDisplay,
) -> Choice:
    """A saved plan names an editor, which must be there."""
    from malmen_cli.operations.active import Chosen
    from malmen_cli.operations.method_editors import editor_by_method, find_by_method
    from malmen_cli.operations.models import pick_device

    request = asked.request()

    def choose(ledger: Ledger) -> Chosen:
        if saved is not None and not request.method.trained:
            if (found := find_by_method(ledger, model, request)) is not None:
                return Chosen(found)
            raise UsageError(
                f"a saved plan names an editor that is kept, and {model.name} has none of {request.method.name} yet: "
                "one would be made for this plan alone",
                remedy=f"Leave out -o; or make and keep one first: {request.method.train_command(model.name)}",
            )
        return editor_by_method(
            ledger,
            model,
            request,
            facts.facts,
            device=pick_device(device),
            batch_tokens=batch_tokens,
            progress=bar,
        )

    return choose


def _trial(device: str, batch_tokens: int | None, bar: BarDisplay) -> Callable[[Ledger, Proposal], Trial]:
    from malmen_cli.operations.apply import ApplyOptions
    from malmen_cli.operations.models import pick_device
    from malmen_cli.operations.trial import attempt

    return attempt(ApplyOptions(device=pick_device(device), batch_tokens=batch_tokens, progress=bar))


def _reckoned(
    device: str, batch_tokens: int | None
) -> Callable[[Ledger, Proposal], tuple[Forecast | None, dict[str, Any]]]:
    from malmen_cli.operations.apply import ApplyOptions
    from malmen_cli.operations.models import pick_device
    from malmen_cli.operations.reckoning import predict

    return predict(ApplyOptions(device=pick_device(device), batch_tokens=batch_tokens))


def _show(planned: Plan) -> None:
    proposal, facts = planned.proposal, planned.proposal.facts
    additions = proposal.additions
    print_table(
        [
            ("model", proposal.model.name),
            ("editor", proposal.editor.id),
            ("new", plural(len(additions.new), "fact")),
            ("superseding", plural(len(additions.superseding), "fact")),
            ("active already", plural(len(additions.already_active), "fact")),
            ("duplicates", f"{plural(facts.duplicates, 'record')} merged"),
            *(
                [("conflicts", f"{plural(facts.conflicts_dropped, 'record')} dropped (--on-conflict)")]
                if facts.conflicts_dropped
                else []
            ),
            ("active then", f"{plural(len(proposal.active), 'fact')} in force, {len(proposal.now.facts):,} now"),
        ]
    )
    if additions.superseding:
        print()
        targets = {fact.edit_digest: fact.target for fact in facts}
        print_table(
            [
                (printable(new.prompt), printable(targets[new.edit_digest]), old.fact_digest[7:17])
                for new, old in additions.superseding[:SHOWN]
            ],
            header=("superseding", "new target", "supersedes fact"),
        )
        _more(len(additions.superseding))
    if planned.trial is not None:
        _show_trial(planned.trial)
    if planned.prediction is not None and planned.memory is not None:
        _show_prediction(planned.prediction, planned.memory)
    if not proposal.is_needed:
        say("Nothing to do: every fact is active already.")


def _show_trial(trial: Trial) -> None:
    known, total = sum(fact.known for fact in trial.figures), len(trial.figures)
    print(f"\nThe model says {known:,} of these {total:,} already (ES before: {percent(trial.edit_success)}).\n")
    if any(fact.residual is None for fact in trial.figures):  # no normal equation was solved
        return
    worst = sorted(trial.figures, key=lambda fact: -(fact.residual or 0.0))[:SHOWN]
    print_table(
        [
            (
                printable(fact.prompt),
                printable(fact.target, 24),
                f"{fact.residual:.3f}",
                f"{fact.leverage:.3f}",
                "yes" if fact.known else "",
            )
            for fact in worst
        ],
        header=("largest residuals", "target", "residual", "leverage", "known"),
    )
    _more(len(trial.figures))
    say("note: residual and leverage say how facts crowd each other in the solve; they do not predict success")


def _show_prediction(needs: Forecast, memory: dict[str, Any]) -> None:
    print(f"\nApplying would take about {_seconds(needs.seconds)} and {size(needs.memory)} of memory,")
    print(f"{size(needs.disk)} in the workspace and {size(needs.temporary)} free beside the checkpoint.")
    print(f"\n{_memory(memory)}")


def _memory(planned: dict[str, Any]) -> str:
    """What was planned from the configuration, and what is free."""
    parts = [f"{name} {size(planned[key])}" for key, name in PARTS.items()]
    free = ", ".join(f"{size(count)} on {device}" for device, count in planned["free"].items())
    head = f"Memory by the model's configuration: {size(planned['total'])}, and free are {free}. Of it:"
    return f"{head}\n{', '.join(parts[:4])},\n{', '.join(parts[4:])}"


def _more(count: int) -> None:
    if count > SHOWN:
        print(f"... and {count - SHOWN:,} more (--json)")


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
