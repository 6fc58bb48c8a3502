"""What a shell offers for Tab: entries, models, editors and splits of the workspace. Quick, silent, harmless.

Whatever goes wrong, and where there is no workspace, nothing is offered. The shell gets plain words only: zsh evaluates
what it is told, and a ledger may come from a stranger.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

from malmen_cli.ledger import Ledger, find_workspace, store

Offer = tuple[str, str]
"""A word, and what it stands for."""

NEWEST = 200
"""Entries offered: more is no help."""

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~:-]*")
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9 .,/_+-]")


def entry_ids(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Short ids, HEAD, HEAD~1 and so on, with the kind and the source of each; ids also after `sha256:`."""
    return _offers(_entries, ctx, incomplete)


def entry_ids_or_files(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """`entry_ids` where a file may stand as well: before the first letter the shell offers files."""
    return _offers(_entries, ctx, incomplete) if incomplete else []


def states(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """`entry_ids`, and the state before all of them."""
    return [*entry_ids(ctx, incomplete), ("base", "the model as it was registered")]


def states_and_checkpoint(ctx: typer.Context, incomplete: str) -> list[Offer]:
    return [*states(ctx, incomplete), ("checkpoint", "the model's folder as it is now")]


def model_names(ctx: typer.Context, incomplete: str) -> list[Offer]:
    return _offers(_models, ctx, incomplete)


def editor_ids(ctx: typer.Context, incomplete: str) -> list[Offer]:
    return _offers(_editors, ctx, incomplete)


def split_names(ctx: typer.Context, incomplete: str) -> list[Offer]:
    return _offers(_splits, ctx, incomplete)


def evaluation_ids(ctx: typer.Context, incomplete: str) -> list[Offer]:
    return _offers(_evaluations, ctx, incomplete)


def _offers(
    find: Callable[[sqlite3.Connection, dict[str, Any], str], Iterable[Offer]], ctx: typer.Context, incomplete: str
) -> list[Offer]:
    """What `find` finds in the ledger, given the options typed so far and the beginning of the word; plain words."""
    try:
        named = ctx.params.get("workspace")
        with Ledger.open(find_workspace(None if named is None else Path(named))) as ledger, ledger.read() as db:
            found = list(find(db, ctx.params, incomplete))
    except Exception:  # no workspace, a damaged one, an older one: a shell is no place to say so
        return []
    return [(word, _NOT_PLAIN.sub("?", words)) for word, words in found if _WORD.fullmatch(word)]


def _entries(db: sqlite3.Connection, options: dict[str, Any], incomplete: str) -> Iterable[Offer]:
    named = options.get("model")
    model = None if named is None else store.model_named(db, named).id
    found = store.entries(db, model, limit=NEWEST)
    if model is not None or len(store.models(db)) == 1:
        for back, entry in enumerate([entry for entry in found if entry.status == "applied"][:10]):
            yield f"HEAD~{back}" if back else "HEAD", _words(entry.kind, entry.source)
    typed = len(incomplete.lower().removeprefix("sha256:"))
    for entry in found:
        digits = entry.id.removeprefix("sha256:")
        # The word has to begin as it was typed, or the shell would not take it.
        yield incomplete[: len(incomplete) - typed] + digits[: max(typed, 10)], _words(entry.kind, entry.source)


def _evaluations(db: sqlite3.Connection, options: dict[str, Any], incomplete: str) -> Iterable[Offer]:
    typed = len(incomplete.lower().removeprefix("sha256:"))
    query = "SELECT id, source, created_at FROM evaluations ORDER BY created_at DESC LIMIT ?"
    for row in db.execute(query, (NEWEST,)):
        digits = row["id"].removeprefix("sha256:")
        words = f"of {row['created_at'][:16].replace('T', ' ')}"
        yield incomplete[: len(incomplete) - typed] + digits[: max(typed, 10)], _words(words, row["source"])


def _words(kind: str, source: str | None) -> str:
    return kind if source is None else f"{kind} {source}"


def _models(db: sqlite3.Connection, options: dict[str, Any], incomplete: str) -> Iterable[Offer]:
    return [(model.name, str(model.path)) for model in store.models(db)]


def _editors(db: sqlite3.Connection, options: dict[str, Any], incomplete: str) -> Iterable[Offer]:
    for model in store.models(db):
        if options.get("model") in (None, model.name):
            for editor in store.editors(db, model.id):
                yield editor.id, f"of {model.name}, {editor.created_at[:10]}"


def _splits(db: sqlite3.Connection, options: dict[str, Any], incomplete: str) -> Iterable[Offer]:
    return [(row["name"], row["path"]) for row in db.execute("SELECT name, path FROM splits ORDER BY name")]
