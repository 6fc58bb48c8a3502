"""The active facts of a model: what is in force now, and what would be after an entry. No torch."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from malmen_cli.errors import UsageError
from malmen_cli.facts import Fact
from malmen_cli.ledger import EditorRecord, EntryFacts, FactRef, ModelRecord, active_facts, store

PROPOSED = "proposed"
"""Id of an entry that is not in the ledger yet."""


@dataclass(frozen=True)
class ActiveSet:
    """Active facts by prompt, in the order they came into effect, and the editor in force (None at the base)."""

    facts: Mapping[str, FactRef]
    editor_id: str | None


def reference(fact: Fact) -> FactRef:
    """A fact as the fold sees it."""
    return FactRef(fact.digest, fact.edit_digest, fact.prompt)


def edit_digests(active: Mapping[str, FactRef]) -> list[str]:
    """The active facts' edit digests in ascending order: the order in which rows are summed."""
    return sorted(fact.edit_digest for fact in active.values())


def active_now(db: sqlite3.Connection, model: ModelRecord) -> ActiveSet:
    """The facts and the editor in force after the newest entry."""
    facts = active_facts(store.fold(db, model.id))
    return ActiveSet(facts, store.head(db, model.id).editor_id if facts else None)


def active_with(db: sqlite3.Connection, model: ModelRecord, entry: EntryFacts) -> dict[str, FactRef]:
    """The active facts as they would be after a proposed entry."""
    return active_facts([*store.fold(db, model.id), entry])


def choose_editor(db: sqlite3.Connection, model: ModelRecord, named: str | None, now: ActiveSet) -> EditorRecord:
    """The editor of an apply: the one named, else the one in force, else the model's newest.

    Raises:
        UsageError: the model has none, or another one is in force.
    """
    if named is not None:
        editor = store.editor(db, named)
        if editor.model_id != model.id:
            raise UsageError(
                f"editor {editor.id} belongs to another model", remedy="malmen models show lists a model's."
            )
    elif now.editor_id is not None:
        editor = store.editor(db, now.editor_id)
    else:
        newest = store.newest_editor(db, model.id)
        if newest is None:
            raise UsageError(
                f"{model.name} has no editor yet", remedy=f"Train one: malmen train FILE --model {model.name}"
            )
        editor = newest
    if now.editor_id not in (None, editor.id):
        raise UsageError(
            f"{len(now.facts)} active facts were applied by editor {now.editor_id}, and editors are never mixed",
            remedy=f"Use --editor {now.editor_id}, or revert the facts first.",
        )
    return editor
