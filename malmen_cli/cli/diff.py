"""`malmen diff`: what changed between two states of a model. Loads torch only where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from malmen_cli.cli.completion import states_and_checkpoint
from malmen_cli.cli.display import BarDisplay
from malmen_cli.cli.options import DeviceOption, JsonOption, ModelOption, WorkspaceOption, open_ledger, short_id
from malmen_cli.cli.output import epilog, plural, print_json, print_table, said, say
from malmen_cli.errors import ExitCode
from malmen_cli.facts import Fact, printable
from malmen_cli.ledger import unmoved

if TYPE_CHECKING:
    from malmen_cli.operations.diff import StateDiff, TensorDiff
    from malmen_cli.operations.predictions import Asked
    from malmen_cli.operations.states import State

WIDTH = 44
"""Characters of a fact's text in a table."""


def register(app: typer.Typer) -> None:
    app.command(
        "diff",
        epilog=epilog(
            ExitCode.DONE,
            ExitCode.FAILED,
            ExitCode.USAGE,
            ExitCode.DIFFERS,
            ExitCode.NO_WORKSPACE,
            ExitCode.LOCKED,
            ExitCode.VERIFICATION_FAILED,
            ExitCode.WRONG_BASE,
            ExitCode.INTERRUPTED,
        ),
    )(diff)


def diff(
    a: Annotated[
        str,
        typer.Argument(
            metavar="[A]",
            help="From: an entry (id, HEAD, HEAD~1, #7), base or checkpoint.",
            autocompletion=states_and_checkpoint,
        ),
    ] = "base",
    b: Annotated[
        str, typer.Argument(metavar="[B]", help="To: the same.", autocompletion=states_and_checkpoint)
    ] = "checkpoint",
    model: ModelOption = None,
    predictions: Annotated[
        bool, typer.Option("--predictions", help="Load the model and ask it about the facts, in either state.")
    ] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 4 where they differ.")] = False,
    facts: Annotated[int, typer.Option("--facts", metavar="N", min=0, help="List at most so many facts.")] = 20,
    top: Annotated[int, typer.Option("--top", metavar="N", min=0, help="Singular values per tensor.")] = 5,
    device: DeviceOption = "auto",
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the names of the tensors only.")] = False,
) -> None:
    """Show what changed between two states of a model: facts, tensors and, if asked for, answers.

    \b
    Examples:
      malmen diff                          # the checkpoint, as it lies now, against its base
      malmen diff HEAD~1 HEAD --predictions
      malmen diff HEAD --exit-code         # has anything else changed the checkpoint?
      malmen diff 6d0c819a5c 7c531d5560 --json

    A state is an entry's, `base`, or `checkpoint`: the bytes in the folder, whoever put them there. Nothing is written.
    """
    from malmen_cli.operations.diff import diff_states
    from malmen_cli.operations.states import CHECKPOINT, named_state, owner

    asked = None
    with open_ledger(workspace) as ledger, BarDisplay() as bar:
        with ledger.read() as db:
            record = owner(db, model, a, b)
        # States of entries lie in the objects; only what the checkpoint itself holds can change meanwhile.
        with unmoved(ledger, record) if CHECKPOINT in (a, b) or predictions else nullcontext():
            with ledger.read() as db:
                states = named_state(db, record, a), named_state(db, record, b)
            found = diff_states(ledger, record, *states, top=top, device=device)
            if predictions:
                from malmen_cli.operations.predictions import compare_predictions

                asked = compare_predictions(ledger, found, device=device, progress=bar)
    _remark(found, asked)
    if json:
        print_json(_as_json(found, asked))
    elif quiet:
        for tensor in found.tensors:
            print(printable(tensor.tensor, limit=None))
    else:
        _show(found, asked, facts)
    if exit_code and found.differs:
        raise typer.Exit(ExitCode.DIFFERS)


def _remark(found: StateDiff, asked: Asked | None) -> None:
    """What one must know to read the difference rightly, on stderr."""
    if found.pending is not None:
        say(f"note: an interrupted {found.pending.kind} ({short_id(found.pending)}) is not settled: malmen recover")
    if found.strange:
        head = (found.a if found.a.strange else found.b).entry
        say(
            f"warning: {plural(len(found.strange), 'tensor')} of {found.model.path} not as the head "
            f"(#{head.number} {short_id(head)}) left it: {', '.join(found.strange[:5])}"
            + (f" and {len(found.strange) - 5} more" if len(found.strange) > 5 else "")
        )
    for remark in found.files:
        say(f"warning: {remark}")
    for tensor in asked.as_they_lie if asked is not None else ():
        say(f"warning: {tensor} was asked as it lies in the folder, for both states")


def _as_json(found: StateDiff, asked: Asked | None) -> dict[str, Any]:
    answers = None if asked is None else [prediction.as_dict() for prediction in asked.predictions]
    return {
        "model": found.model.name,
        "a": _state_json(found.a),
        "b": _state_json(found.b),
        "differs": found.differs,
        "facts": {
            "added": [_fact_json(fact) for fact in found.added],
            "removed": [_fact_json(fact) for fact in found.removed],
            "superseded": [{"from": _fact_json(old), "to": _fact_json(new)} for old, new in found.superseded],
            "common": len(found.common),
        },
        "tensors": [tensor.as_dict() for tensor in found.tensors],
        "files": found.files,
        "not_in_ledger": found.strange,
        "pending": None if found.pending is None else found.pending.id,
        "predictions": None
        if answers is None
        else {"asked": len(answers), "changed": sum(answer["changed"] for answer in answers), "answers": answers},
    }


def _state_json(state: State) -> dict[str, Any]:
    return {
        "name": state.name,
        "entry": state.entry.id,
        "number": state.entry.number,
        "active_facts": len(state.facts),
    }


def _fact_json(fact: Fact) -> dict[str, Any]:
    return {"digest": fact.digest, "prompt": fact.prompt, "target": fact.target, "subject": fact.subject}


def _show(found: StateDiff, asked: Asked | None, limit: int) -> None:
    if not found.differs:
        say(f"No difference between {found.a} and {found.b} of {found.model.name}")
        return
    print(
        f"{found.a} -> {found.b} of {found.model.name}: {plural(len(found.added), 'fact')} added, "
        f"{len(found.removed)} removed, {len(found.superseded)} superseded, {len(found.common)} the same; "
        f"{plural(len(found.tensors), 'tensor')} changed"
    )
    rows = [("+", fact.prompt, fact.target) for fact in found.added]
    rows += [("-", fact.prompt, fact.target) for fact in found.removed]
    rows += [("~", new.prompt, f"{_cut(old.target)} -> {_cut(new.target)}") for old, new in found.superseded]
    if rows and limit:
        print()
        listed = [(mark, _cut(prompt), printable(target, 2 * WIDTH)) for mark, prompt, target in rows[:limit]]
        print_table(listed, header=("", "prompt", "target"))
        if len(rows) > limit:
            print(f"... and {len(rows) - limit:,} more (--facts {len(rows)})")
    if found.tensors:
        print()
        _show_tensors(found.tensors)
    if asked is not None:
        _show_answers(asked, limit)


def _show_tensors(tensors: Sequence[TensorDiff]) -> None:
    shown = ("norm", "relative_norm", "largest_change", "effective_rank")
    print_table(
        [
            (
                tensor.tensor,
                *(f"{tensor.figures[name]:.3g}" if name in tensor.figures else "-" for name in shown),
                f"{tensor.figures['share_moved']:.1%}" if "share_moved" in tensor.figures else "-",
                tensor.note or " ".join(f"{value:.3g}" for value in tensor.singular_values),
            )
            for tensor in tensors
        ],
        header=("tensor", "norm", "relative", "largest", "rank", "moved", "singular values"),
    )


def _show_answers(asked: Asked, limit: int) -> None:
    changed = [answer for answer in asked.predictions if answer.changed]
    print()
    if changed and limit:
        print_table(
            [
                (
                    answer.kind,
                    _cut(answer.prompt),
                    _cut(answer.target),
                    said(answer.before, WIDTH),
                    said(answer.after, WIDTH),
                )
                for answer in changed[:limit]
            ],
            header=("", "prompt", "target", "before", "after"),
        )
        if len(changed) > limit:
            print(f"... and {len(changed) - limit:,} more (--facts {len(changed)})")
    print(f"{len(asked.predictions):,} asked, {len(changed):,} answered otherwise")


def _cut(text: str) -> str:
    return printable(text, WIDTH)
