"""`malmen log`: the ledger, newest first. Loads neither torch nor SQLAlchemy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from malmen_cli.cli.options import (
    JsonOption,
    OnlyModelOption,
    QuietOption,
    WorkspaceOption,
    entry_json,
    open_ledger,
    short_id,
)
from malmen_cli.cli.output import epilog, percent, plural, print_json, print_table, say
from malmen_cli.errors import ExitCode
from malmen_cli.facts import printable
from malmen_cli.ledger import Entry, putting_back, reverters, store

_NAMED = 3  # reverts that are named as those that took an entry's facts out


def register(app: typer.Typer) -> None:
    app.command("log", epilog=epilog(ExitCode.DONE, ExitCode.FAILED, ExitCode.USAGE, ExitCode.NO_WORKSPACE))(log)


def log(
    model: OnlyModelOption = None,
    number: Annotated[int | None, typer.Option("--number", "-n", min=1, help="Show the newest N entries only.")] = None,
    workspace: WorkspaceOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the ledger's entries, newest first; times are UTC.

    \b
    Examples:
      malmen log
      malmen log --model gpt2 -n 5
      malmen log --json | jq '.[0].id'
    """
    from malmen_cli.operations.models import find_model

    with open_ledger(workspace) as ledger, ledger.read() as db:
        chosen = None if model is None else find_model(db, model)
        entries = store.entries(db, None if chosen is None else chosen.id, limit=number)
        models = {m.id: m for m in store.models(db)}
        models |= {i: store.model_with_id(db, i) for i in {entry.model_id for entry in entries} - models.keys()}
        heads = {store.head(db, model_id).id for model_id in models}
        undone: dict[str, list[str]] = {}
        again: set[str] = set()
        for model_id in {entry.model_id for entry in entries}:
            history = store.fold(db, model_id)
            by = reverters(history)
            undone |= {
                entry.id: list(dict.fromkeys(by[entry.id].values()))
                for entry in history
                if all(fact.fact_digest in by[entry.id] for fact in entry.facts)
            }
            again |= putting_back(history)
    if json:
        print_json([entry_json(entry, models[entry.model_id], entry.id in heads) for entry in entries])
    elif quiet:
        for entry in entries:
            print(entry.id)
    elif not entries:
        say("The ledger is empty: malmen models add NAME FOLDER")
    else:
        print_table(
            [
                (
                    f"#{entry.number}",
                    short_id(entry),
                    entry.created_at[:19].replace("T", " "),
                    models[entry.model_id].name,
                    entry.kind,
                    _what(entry, entry.id in again),
                    _mark(entry, entry.id in heads, undone.get(entry.id, [])),
                )
                for entry in entries
            ],
            styles=(None, "id", None, None, None, None, "good"),
        )


def _mark(entry: Entry, is_head: bool, undone_by: Sequence[str]) -> str:
    """`undone_by`: the reverts that have taken out all of its facts."""
    if entry.status != "applied":
        return "PENDING"
    names = ", ".join(map(short_id, undone_by[:_NAMED])) + (", …" if len(undone_by) > _NAMED else "")
    gone = [f"reverted by {names}"] if undone_by else []
    return " ".join([*(["HEAD"] if is_head else []), *gone])


def _what(entry: Entry, again: bool) -> str:
    """What an entry did; `again`: of a revert that has put facts back."""
    facts = entry.details.get("facts", {})
    if entry.kind == "apply":
        after = entry.details.get("check", {}).get("after", {})
        scores = " / ".join(percent(after.get(key)) for key in ("ES", "GS", "LS"))
        new = facts.get("in_file", 0) - facts.get("duplicates", 0) - facts.get("conflicts_dropped", 0)
        source = printable(entry.source or "-", 40)
        return f"{plural(new, 'fact')} from {source}, {facts.get('active')} active, ES/GS/LS {scores}"
    if entry.kind == "rebase":
        return f"{plural(facts.get('active', 0), 'fact')} moved to editor {entry.editor_id}"
    if entry.kind == "revert":
        target = short_id(entry.target or "")
        fate, moved = ("put back", "revived") if again else ("taken out", "removed")
        count = facts.get(moved, facts.get("taken_out", 0))  # entries of before know only how many were named
        return f"{plural(count, 'fact')} of {target} {fate}, {facts.get('active')} active"
    return ""
