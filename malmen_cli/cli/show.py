"""`malmen show`: one entry in full, with its facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from malmen_cli.cli.gates import print_gates
from malmen_cli.cli.options import (
    EntryArgument,
    JsonOption,
    ModelOption,
    QuietOption,
    WorkspaceOption,
    entry_json,
    open_ledger,
    short_id,
)
from malmen_cli.cli.output import epilog, percent, plural, print_fields, print_json, print_table, size
from malmen_cli.errors import ExitCode
from malmen_cli.facts import printable
from malmen_cli.ledger import Entry, Fate, Holding, fates, holding, putting_back, reverters, store
from malmen_cli.ledger.records import FIGURES


def register(app: typer.Typer) -> None:
    app.command("show", epilog=epilog(ExitCode.DONE, ExitCode.FAILED, ExitCode.USAGE, ExitCode.NO_WORKSPACE))(show)


def show(
    entry_id: EntryArgument = "HEAD",
    model: ModelOption = None,
    facts: Annotated[int, typer.Option("--facts", min=0, help="List at most so many facts.")] = 20,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show one entry in full: its facts, what it did to each tensor, how it was checked.

    \b
    Examples:
      malmen show
      malmen show HEAD~1 --facts 1000
      malmen show 4f2a91 --json
    """
    from malmen_cli.operations.active import reference
    from malmen_cli.operations.models import find_model

    with open_ledger(workspace) as ledger, ledger.read() as db:
        chosen = None if model is None else find_model(db, model)
        entry = store.resolve_entry(db, entry_id, None if chosen is None else chosen.id)
        owner = store.model_with_id(db, entry.model_id)
        is_head = store.head(db, owner.id).id == entry.id
        deltas = store.deltas_of(db, entry.id)
        listed = store.facts_of(db, entry)
        history = store.fold(db, owner.id)
        # An interrupted entry is none of the history's: nobody has reverted its facts, and they are not in effect.
        there = any(other.id == entry.id for other in history)
        became = fates(history, entry.id, map(reference, listed)) if there else [None] * len(listed)
        by = reverters(history).get(entry.id, {})
        again = entry.id in putting_back(history)
        held = holding(db, ledger.objects, owner, entry)

    if json:
        shown: dict[str, Any] = entry_json(entry, owner, is_head)
        shown["facts"] = [
            {
                "number": number,
                "digest": fact.digest,
                "prompt": fact.prompt,
                "target": fact.target,
                "subject": fact.subject,
                "in_effect": fate in ("in effect", "held by another entry"),
                "reverted_by": by.get(fact.digest),
            }
            for number, (fact, fate) in enumerate(zip(listed, became, strict=True), 1)
        ]
        shown["parameter_deltas"] = [
            {"tensor": d.tensor, "before": d.before, "after": d.after, **{name: getattr(d, name) for name in FIGURES}}
            for d in deltas
        ]
        shown["on_disk"] = asdict(held)
        print_json(shown)
        return
    if quiet:
        print(entry.id)
        return
    news = [_news(fate, by.get(fact.digest)) for fact, fate in zip(listed, became, strict=True)]
    print_fields(
        [
            ("entry", f"#{entry.number} {entry.id}" + (" HEAD" if is_head else "")),
            ("kind", f"{entry.kind}, {entry.status}"),
            ("model", owner.name),
            ("when", entry.created_at),
            ("command", printable(entry.command, limit=None)),
            *([("target", entry.target)] if entry.target else []),
            *([("editor", entry.editor_id)] if entry.editor_id else []),
            *([("former editor", str(entry.details.get("former_editor")))] if entry.kind == "rebase" else []),
            *([("source", printable(entry.source, limit=None))] if entry.source else []),
            *([("facts", _facts(entry, news, again))] if listed else []),
            ("on disk", _on_disk(held)),
        ]
    )
    check = entry.details.get("check")
    if check:
        print()
        rows = [(when, *(percent(check[when].get(key)) for key in ("ES", "GS", "LS"))) for when in ("before", "after")]
        print_table(rows, header=("active facts" if entry.kind == "rebase" else "new facts", "ES", "GS", "LS"))
        old = sum(not wrong.get("new") for wrong in check["wrong"])  # all of these are named
        new = check.get("still_wrong", len(check["wrong"])) - old
        older = f", {old:,} of {plural(check['checked_old'], 'older fact')} asked again" if check["checked_old"] else ""
        # A rebase has no facts of its own, and has asked some of those that it moved.
        of_all = f" of {plural(len(listed), 'fact')}" if listed else ""
        print(f"still wrong: {new:,}{of_all}{older}")
    gates = entry.details.get("gates")
    if gates:
        print()
        print_gates(gates)
    if deltas:
        print()
        print_table(
            [
                (
                    delta.tensor,
                    *(
                        "-" if value is None else f"{value:.3g}"
                        for value in (delta.norm, delta.relative_norm, delta.largest_change, delta.effective_rank)
                    ),
                    "-" if delta.share_moved is None else f"{delta.share_moved:.1%}",
                    "-" if delta.rounding_loss is None else f"{delta.rounding_loss:.1e}",
                )
                for delta in deltas
            ],
            header=("tensor", "norm", "relative", "largest", "rank", "moved", "rounding"),
        )
    if listed and facts:
        print()
        print_table(
            [
                (
                    str(number),
                    printable(fact.prompt),
                    printable(fact.target),
                    what,
                )
                for number, (fact, what) in enumerate(zip(listed[:facts], news[:facts], strict=True), 1)
            ],
            header=("fact", "prompt", "target", ""),
        )
        if len(listed) > facts:
            print(f"... and {len(listed) - facts} more (--facts {len(listed)})")


def _news(fate: Fate | None, by: str | None) -> str:
    """What became of a fact, `by` which revert; nothing where it is as the entry left it."""
    if fate is None or fate == "in effect":
        return ""
    return f"reverted by {short_id(by)}" if fate == "reverted" and by is not None else fate


def _facts(entry: Entry, news: Sequence[str], again: bool) -> str:
    """How many there are, and what became of them; `again`: of a revert that has put them back."""
    counts = [f"{count} {words}" for words, count in Counter(filter(None, news)).items()]
    if entry.kind == "revert":
        target = short_id(entry.target or "")
        counts = [] if "" in news else [f"{', '.join(dict.fromkeys(news))} since"]
        done = f"put back, which {target} had taken out" if again else f"taken out of {target}"
        return "; ".join([f"{len(news)} {done}", *counts])
    return ", ".join([str(len(news)), *counts])


def _on_disk(held: Holding) -> str:
    words = f"{size(held.total)}: tensors {size(held.tensors)}, rows {size(held.rows)}"
    if held.shared:
        words += f"; {size(held.shared)} shared with other entries"
    if held.dropped:
        words += f"; {plural(held.dropped, 'object')} dropped"
    return words
