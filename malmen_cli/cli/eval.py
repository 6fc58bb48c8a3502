"""`malmen eval`: how good edits are, of a fact file in memory or of an entry on the checkpoint as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from malmen_cli.cli.completion import entry_ids_or_files
from malmen_cli.cli.display import BarDisplay
from malmen_cli.cli.evaluation_tables import print_evaluation
from malmen_cli.cli.fact_source import read_facts
from malmen_cli.cli.options import (
    DeviceOption,
    DtypeOption,
    EditorOption,
    FormatOption,
    JsonOption,
    ModelOption,
    OnConflictOption,
    SplitOption,
    WorkspaceOption,
    entry_json,
    open_ledger,
)
from malmen_cli.cli.output import epilog, plural, print_json, say
from malmen_cli.errors import ExitCode, UnknownName, UsageError
from malmen_cli.facts import printable

if TYPE_CHECKING:
    from malmen_cli.ledger import Entry, Ledger, ModelRecord
    from malmen_cli.operations.evaluated import Evaluated, EvaluationOptions


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
        int | None,
        typer.Option(
            "--n-edits",
            metavar="N",
            min=1,
            help="Take so many of the facts (default: all; of a file, at most what the editor was trained for).",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="S", min=0, help="Which facts --n-edits takes.")] = 0,
    editor: EditorOption = None,
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
    sample: Annotated[int, typer.Option("--sample", min=0, help="Show answers to so many facts.")] = 5,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", min=1, help="Padded tokens per model batch.")] = 1024,
    device: DeviceOption = "auto",
    dtype: DtypeOption = None,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only the digests of facts that the edited model does not say.")
    ] = False,
) -> None:
    """Score edits: ES, GS and LS, teacher-forced and generated, against the base. Nothing is written.

    \b
    Examples:
      malmen eval held-out.jsonl --n-edits 64      # how good is this editor at 64 facts?
      malmen eval --split zsre --n-edits 1000 --seed 1 --json
      malmen eval HEAD                             # how do that entry's facts stand in the checkpoint?
      malmen eval 6d0c819a5c --check-old 1000

    A file's facts are edited in memory, from the base and alone: whatever is active plays no part. An entry's facts are
    asked on the checkpoint as it stands, with all other active facts in it; those that were reverted or superseded
    since are left out.

    A free answer is greedy and ends where the model ends it, or at a line end; cut off by the cap it is no match. It
    matches if it is the target, outer white space and one closing full stop aside.
    """
    if what is None and split is None:
        raise UsageError(
            "nothing to evaluate is named", remedy="give a fact file, or --split NAME, or an entry (malmen log)"
        )
    if split is not None or (what is not None and is_file(what)):
        file = None if what is None else Path(what)
        facts = read_facts(file, split, workspace=workspace, format=format, on_conflict=on_conflict)
    else:
        facts = None
        if any(given is not None for given in (editor, format, on_conflict)):
            raise UsageError(
                f"--editor, --format and --on-conflict are for a fact file, and {printable(str(what))} is none",
                remedy="leave them out to score an entry, or name a file that is there",
            )
    with open_ledger(workspace) as ledger, BarDisplay() as bar:
        # What is named wrongly is told before torch is loaded.
        record, entry, is_head = _named(ledger, model, None if facts is not None else str(what))
        from malmen_cli.operations.evaluation import EvaluationOptions, evaluate_entry, evaluate_file
        from malmen_cli.operations.models import pick_device

        options = EvaluationOptions(
            editor=editor,
            n_edits=n_edits,
            seed=seed,
            device=pick_device(device),
            dtype=dtype,
            batch_tokens=batch_tokens,
            generate=generate,
            max_new_tokens=max_new_tokens,
            check_old=check_old,
            progress=bar,
        )
        if facts is not None:
            evaluated = evaluate_file(ledger, record, facts, options)
        else:
            assert entry is not None
            evaluated = evaluate_entry(ledger, record, entry, options)
    _remark(evaluated, n_edits)
    if json:
        entry_shown = None if entry is None else entry_json(entry, record, is_head)
        print_json({"entry": entry_shown, **_asked_for(options), **evaluated.as_dict()})
    elif quiet:
        for digest in evaluated.report.wrong():
            print(digest)
    else:
        print_evaluation(evaluated, sample)


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
    }


def _remark(evaluated: Evaluated, n_edits: int | None) -> None:
    """What one must know to read the scores rightly, on stderr."""
    scored, gone = len(evaluated.numbers), evaluated.not_in_effect
    if n_edits is None and evaluated.sampled:
        say(
            f"note: the file has {evaluated.available:,} facts, more than this editor was trained for at once: "
            f"{scored:,} of them were drawn with seed {evaluated.seed} (--n-edits, --seed)"
        )
    if n_edits is not None and n_edits > evaluated.available:
        say(f"note: {n_edits:,} facts were asked for, and there are {evaluated.available:,}")
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
    if evaluated.lent:
        say(
            f"note: {plural(evaluated.lent, 'fact')} without unrelated prompts: LS is asked of other facts of the "
            "file, which are not edited"
        )
    for warning in evaluated.warnings:
        say(f"warning: {warning}")
