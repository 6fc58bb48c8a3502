"""`malmen eval`: how good edits are, of a fact file in memory or of an entry on the checkpoint as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from malmen_cli.cli.completion import entry_ids_or_files, evaluation_ids
from malmen_cli.cli.display import BarDisplay
from malmen_cli.cli.eval_report import names, numbers, report_comparison, require_report
from malmen_cli.cli.evaluation_tables import print_evaluation
from malmen_cli.cli.fact_source import read_facts
from malmen_cli.cli.kept_evaluations import print_list, print_one
from malmen_cli.cli.method_options import (
    MethodOption,
    MethodSettingsOption,
    TextOption,
    check_methods,
)
from malmen_cli.cli.options import (
    BatchTokensOption,
    DeviceOption,
    DtypeOption,
    EditorOption,
    FormatOption,
    JsonOption,
    ModelOption,
    OnConflictOption,
    SplitOption,
    WorkspaceOption,
    command_line,
    entry_json,
    open_ledger,
    refuse_idle,
    was_given,
)
from malmen_cli.cli.output import epilog, plural, print_json, say
from malmen_cli.errors import ExitCode, MalmenError, UnknownName, UsageError
from malmen_cli.facts import printable
from malmen_cli.operations.evaluation_files import refuse_existing, running_text, write_failed

if TYPE_CHECKING:
    from malmen_cli.evaluation.overlap import Overlap
    from malmen_cli.ledger import Entry, Ledger, ModelRecord
    from malmen_cli.ledger.evaluations import Evaluation
    from malmen_cli.operations.evaluated import Evaluated, EvaluationOptions

_OF_KEPT = ("show_list", "show", "model", "workspace", "json", "quiet")

GroupBy = Literal["tag", "template", "target"]
OverlapOption = Literal["leave-out", "keep"]


def register(app: typer.Typer) -> None:
    app.command(
        "eval",
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
    )(evaluate)


def evaluate(
    context: typer.Context,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE|ID",
            help="A fact file, or - for standard input; else an entry: id, HEAD, HEAD~1, #7.",
            show_default=False,
            autocompletion=entry_ids_or_files,
        ),
    ] = None,
    split: SplitOption = None,
    model: ModelOption = None,
    n_edits: Annotated[
        str | None,
        typer.Option(
            "--n-edits",
            metavar="N,...",
            help="Take so many of the facts (default: all; of a file, at most what the editor was trained for). Of "
            "several numbers, such as 16,64,256, the scores against them, as a report.",
        ),
    ] = None,
    seed: Annotated[
        str, typer.Option("--seed", metavar="S,...", help="Which facts --n-edits takes; of several the mean.")
    ] = "0",
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="DIR",
            help="Write a report there: HTML, figures, Markdown, JSON (several numbers: malmen-eval-MODEL-DATE).",
        ),
    ] = None,
    editor: EditorOption = None,
    method: MethodOption = None,
    method_settings: MethodSettingsOption = None,
    method_text: TextOption = None,
    format: FormatOption = None,
    on_conflict: OnConflictOption = None,
    generate: Annotated[
        bool, typer.Option("--generate/--no-generate", help="Let the model answer freely too, or save that time.")
    ] = True,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens", metavar="N", min=1, help="Cap of a free answer (default: the target's tokens and 16)."
        ),
    ] = None,
    check_old: Annotated[
        int,
        typer.Option("--check-old", metavar="N", min=0, help="Of an ID: ask at most so many other active facts."),
    ] = 256,
    overlap: Annotated[
        OverlapOption,
        typer.Option("--overlap", help="Of a file: what becomes of facts with a prompt of the editor's training."),
    ] = "leave-out",
    drift: Annotated[
        Path | None,
        typer.Option("--drift", metavar="FILE", help="Measure the perplexity of this running text too."),
    ] = None,
    failed: Annotated[
        Path | None,
        typer.Option("--failed", metavar="FILE", help="Write the facts that failed into a fact file."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --failed replace a file that is there.")] = False,
    sample: Annotated[int, typer.Option("--sample", min=0, help="Show answers to so many facts.")] = 5,
    by: Annotated[
        GroupBy,
        typer.Option(
            "--by", help="Show the worst groups, of five facts or more, by tag, by the prompt's wording, or by target."
        ),
    ] = "tag",
    keep: Annotated[
        bool, typer.Option("--keep/--no-keep", help="Keep scores and answers in the ledger, or nothing.")
    ] = True,
    show_list: Annotated[bool, typer.Option("--list", help="List the evaluations that were kept.")] = False,
    show: Annotated[
        str | None,
        typer.Option(
            "--show", metavar="EVAL", help="Show one of them: its id or first digits.", autocompletion=evaluation_ids
        ),
    ] = None,
    batch_tokens: BatchTokensOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only the digests of facts that the edited model does not say.")
    ] = False,
) -> None:
    """Score edits: ES, GS and LS, teacher-forced and generated, against the base. No checkpoint is written.

    \b
    Examples:
      malmen eval held-out.jsonl --n-edits 64      # how good is this editor at 64 facts?
      malmen eval --split zsre --n-edits 1000 --seed 1 --json
      malmen eval HEAD                             # how do that entry's facts stand in the checkpoint?
      malmen eval 6d0c819a5c --check-old 1000
      malmen eval held-out.jsonl --drift wikipedia.txt --failed failed.jsonl
      malmen eval --split zsre --n-edits 16,64,256,1024 --seed 0,1,2
      malmen eval held-out.jsonl --n-edits 16,64 --editor 6d0c819a5c,41e9c52d43 --report ./compared
      malmen eval --list                           # what was scored before, kept in the ledger

    A file's facts are edited in memory, from the base and alone: whatever is active plays no part. An entry's facts are
    asked on the checkpoint as it stands, with all other active facts in it; those that were reverted or superseded
    since are left out.

    Facts of a file with a prompt that the editor was trained on are left out. A --method without training needs no
    editor: one is made in memory of the file's facts, drawn or not, and is kept nowhere.

    A report compares numbers of facts, and editors, on the same facts: the base is asked once, and a smaller number is
    a part of the next larger one. It holds each point as soon as it is made: the same command goes on with it.

    A free answer is greedy and ends where the model ends it, or at a line end; cut off by the cap it is no match. It
    matches if it is the target (of one with line breaks the first line), outer white space and one closing full stop
    aside.
    """
    if show_list or show is not None:
        refuse_idle(context, "--list or --show, which evaluate nothing", used=_OF_KEPT)
        if show is not None:
            refuse_idle(context, "--show, which names one evaluation", idle=("show_list", "model"))
        _show_kept(show, model, workspace, json, quiet)
        return
    if what is None and split is None:
        raise UsageError(
            "nothing to evaluate is named", remedy="give a fact file, or --split NAME, or an entry (malmen log)"
        )
    sizes = [] if n_edits is None else numbers(n_edits, "--n-edits", smallest=1)
    seeds, editors = numbers(seed, "--seed", smallest=0), names(editor, "--editor")
    methods = check_methods(names(method, "--method"), method_settings, method_text)
    reporting = report is not None or max(len(sizes), len(seeds), len(editors) + len(methods)) > 1
    if reporting:
        require_report(split is not None or (what is not None and is_file(what)), failed)
        refuse_idle(context, "a report", idle=("sample", "by", "keep", "check_old", "force"))
    if failed is None:
        refuse_idle(context, "an evaluation without --failed", idle=("force",))
    if not generate:
        refuse_idle(context, "--no-generate", idle=("max_new_tokens",))
    text = None if drift is None else running_text(drift)
    if failed is not None:
        refuse_existing(failed, force)
    if split is not None or (what is not None and is_file(what)):
        file = None if what is None else Path(what)
        refuse_idle(context, "evaluating a file's facts", idle=("check_old",))
        facts = read_facts(file, split, workspace=workspace, format=format, on_conflict=on_conflict)
    else:
        facts = None
        refuse_idle(context, "evaluating an entry", idle=("overlap",))
        if any(given is not None for given in (editor, method, format, on_conflict)):
            raise UsageError(
                f"--editor, --method, --format and --on-conflict are for a fact file, and {printable(str(what))} is "
                "none",
                remedy="leave them out to score an entry, or name a file that is there",
            )
    with open_ledger(workspace) as ledger, BarDisplay() as bar:
        from malmen_cli.operations.places import require_elsewhere

        # What is named wrongly is told before torch is loaded.
        record, entry, is_head = _named(ledger, model, None if facts is not None else str(what))
        for place in (failed, report):
            if place is not None:
                require_elsewhere(ledger, place)
        from malmen_cli.operations.evaluation import EvaluationOptions, evaluate_entry, evaluate_file
        from malmen_cli.operations.models import pick_device

        options = EvaluationOptions(
            editor=editors[0] if editors else None,
            method=methods[0].request() if methods else None,
            n_edits=sizes[0] if sizes else None,
            seed=seeds[0],
            device=pick_device(device),
            dtype=dtype,
            batch_tokens=batch_tokens,
            generate=generate,
            max_new_tokens=max_new_tokens,
            check_old=check_old,
            overlap=overlap,
            drift=text,
            progress=bar,
        )
        if reporting:
            assert facts is not None
            requests = [asked.request() for asked in methods]
            report_comparison(
                ledger, record, facts, editors, requests, sizes, seeds, options, report, json=json, quiet=quiet
            )
            return
        if facts is not None:
            evaluated = evaluate_file(ledger, record, facts, options)
        else:
            assert entry is not None
            evaluated = evaluate_entry(ledger, record, entry, options)
    kept = _keep(evaluated, options, workspace) if keep else None
    _remark(evaluated, options.n_edits)
    if kept is not None and not quiet:
        say(f"note: kept as evaluation {kept.short} (malmen eval --show {kept.short}; --no-keep keeps nothing)")
    if failed is not None:
        say(f"note: {write_failed(failed, evaluated.report.failed(), force)}")
    if json:
        entry_shown = None if entry is None else entry_json(entry, record, is_head)
        kept_as = None if kept is None else kept.id
        print_json({"entry": entry_shown, "evaluation": kept_as, **_asked_for(options), **evaluated.as_dict()})
    elif quiet:
        for digest in evaluated.report.wrong():
            print(digest)
    else:
        print_evaluation(evaluated, sample, by, by_was_given=was_given(context, "by"))


def _show_kept(name: str | None, model: str | None, workspace: Path | None, json: bool, quiet: bool) -> None:
    with open_ledger(workspace) as ledger, ledger.read() as db:
        if name is None:
            print_list(db, model, json=json, quiet=quiet)
        else:
            print_one(db, name, json=json, quiet=quiet)


def _keep(evaluated: Evaluated, options: EvaluationOptions, workspace: Path | None) -> Evaluation | None:
    """Into the ledger; where that cannot be written the scores are shown all the same."""
    from malmen_cli.operations.evaluation import keep

    try:
        with open_ledger(workspace, writing=True) as ledger:
            return keep(ledger, evaluated, _asked_for(options), options.device, command_line())
    except MalmenError as error:
        say(f"note: the evaluation could not be kept: {error.message}")
        return None


def is_file(name: str) -> bool:
    """Whether a name is one that facts can be read from: standard input, a file, a pipe."""
    try:
        return name == "-" or (Path(name).exists() and not Path(name).is_dir())
    except (OSError, ValueError):  # too long, or a NUL character
        return False


def _named(ledger: Ledger, model: str | None, name: str | None) -> tuple[ModelRecord, Entry | None, bool]:
    """The model and, with a name, the entry of this name and whether it is the model's head."""
    from malmen_cli.ledger import store
    from malmen_cli.operations.models import find_model
    from malmen_cli.operations.states import owner

    with ledger.read() as db:
        if name is None:
            return find_model(db, model), None, False
        record = find_model(db, model) if model is not None else None
        try:
            record = record or owner(db, None, name)
            entry = store.resolve_entry(db, name, record.id)
        except UnknownName as error:
            raise UnknownName(
                f"{printable(name)} is neither a fact file that is there nor an entry: {error.message}",
                remedy="check the path, or give an id from malmen log",
            ) from None
        return record, entry, store.head(db, record.id).id == entry.id


def _asked_for(options: EvaluationOptions) -> dict[str, Any]:
    return {
        "n_edits": options.n_edits,
        "generate": options.generate,
        "max_new_tokens": options.max_new_tokens,
        "device": options.device,
        "dtype": options.dtype,
        "batch_tokens": options.batch_tokens,
        "check_old": options.check_old,
        "overlap_option": options.overlap,
    }


def _remark(evaluated: Evaluated, n_edits: int | None) -> None:
    """What one must know to read the scores rightly, on stderr."""
    scored, gone = len(evaluated.numbers), evaluated.not_in_effect
    if n_edits is None and evaluated.sampled:
        say(
            f"note: the file has {evaluated.available:,} facts, more than this editor was trained for at once: "
            f"{scored:,} of them were drawn with seed {evaluated.seed} (--n-edits, --seed)"
        )
    overlap = evaluated.overlap
    there = evaluated.available - len(gone) - evaluated.report.left_out["edit"]
    there -= overlap.same_prompt if overlap is not None and overlap.left_out else 0
    if n_edits is not None and n_edits > there:
        say(f"note: {n_edits:,} facts were asked for, and there are {there:,}")
    if gone:
        reverted = sum(fact.why == "reverted" for fact in gone)
        say(
            f"note: {len(gone):,} of {plural(evaluated.available, 'fact')} are not in effect any more "
            f"({reverted:,} reverted, {len(gone) - reverted:,} superseded): left out"
        )
    left_out = {kind: count for kind, count in evaluated.report.left_out.items() if count}
    if left_out:
        listed = ", ".join(f"{count:,} {kind}" for kind, count in left_out.items())
        say(f"note: prompts that do not fit the model were left out: {listed}")
    if overlap is not None:
        _remark_overlap(overlap)
    elif evaluated.editor is not None and evaluated.entry is None:
        say(f"note: editor {evaluated.editor[:10]} does not say what it was trained on: overlap is not known")
    if evaluated.lent:
        prompts = plural(len({result.prompt for result in evaluated.report.of_kind("unrelated")}), "prompt")
        say(
            f"note: {plural(evaluated.lent, 'fact')} without unrelated prompts: LS is asked of other facts of the "
            f"file, which are not edited ({prompts} in all): their targets are new too, so that what counts is "
            "'unchanged'"
        )
    if evaluated.made is not None:
        say(f"note: {evaluated.made}")
    for warning in evaluated.warnings:
        say(f"warning: {warning}")


def _remark_overlap(overlap: Overlap) -> None:
    """How much of what was asked the editor has seen in training."""
    if overlap.same_prompt:
        fate = "left out (--overlap keep)" if overlap.left_out else "scored all the same"
        say(f"note: {plural(overlap.same_prompt, 'fact')} with a prompt of the editor's training: {fate}")
    if overlap.same_subject:
        count = plural(overlap.same_subject, "fact")
        say(f"note: {count} of subjects of the editor's training (--json scores them apart)")
    if overlap.same_unrelated:
        say(f"note: {plural(overlap.same_unrelated, 'unrelated prompt')} of the editor's training among those asked")
