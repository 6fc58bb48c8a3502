"""The active facts of a model: what is in force now, and what would be after an entry. No torch."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from malmen_cli.errors import UnsafeFile, UsageError
from malmen_cli.facts import Fact, FactSet
from malmen_cli.ledger import (
    Additions,
    EditorRecord,
    Entry,
    EntryFacts,
    FactRef,
    Ledger,
    ModelRecord,
    active_digest,
    active_facts,
    require_room,
    store,
    superseded_by,
)
from malmen_cli.methods.registry import method_of
from malmen_cli.operations.layers import layers_of

if TYPE_CHECKING:
    from malmen_cli.operations.made import Made

FEW = 32
"""Facts below which a calibration is said to be of few."""

PROPOSED = "proposed"
"""Id of an entry that is not in the ledger yet."""


@dataclass(frozen=True)
class ActiveSet:
    """Active facts by prompt, in the order they came into effect, and the editor in force (None at the base)."""

    facts: Mapping[str, FactRef]
    editor_id: str | None


@dataclass(frozen=True)
class Chosen:
    """The editor of an apply. `made`: what it is made of, where it is kept nowhere yet."""

    record: EditorRecord
    made: Made | None = None

    @property
    def warnings(self) -> list[str]:
        """Of its making."""
        return warnings_of(self.made)


def warnings_of(made: Made | None) -> list[str]:
    """What the making of an editor has to warn of; nothing where none was made."""
    return [] if made is None else made.warnings


def sizes_of(made: Made | None) -> list[int]:
    """Bytes of the files that keeping an editor takes; nothing where none was made."""
    return [] if made is None else [len(data) for data in made.files.values()]


@dataclass(frozen=True)
class Proposal:
    """What a fact set would do to a model's active facts: known before any model or editor is loaded.

    Attributes:
        head: the newest entry, after which it would come. now: what is in force. additions: the set's facts by what
            they do to it. active: the facts that would be in force. made: of an editor that is kept nowhere yet.
    """

    model: ModelRecord
    facts: FactSet
    editor: EditorRecord
    head: Entry
    now: ActiveSet
    additions: Additions
    active: Mapping[str, FactRef]
    made: Made | None = None

    @property
    def is_needed(self) -> bool:
        """False where every fact is active already."""
        return bool(self.additions.new or self.additions.superseding)

    @property
    def active_digest(self) -> str:
        return active_digest(self.editor.id, self.active)

    def kept(self) -> list[str]:
        """Digests of the facts that are in force now, would stay so, and are none of the fact set's."""
        asked = {fact.prompt for fact in self.facts}
        return [fact.fact_digest for prompt, fact in self.now.facts.items() if prompt not in asked]


def propose(ledger: Ledger, model: ModelRecord, facts: FactSet, editor: str | Chosen | None) -> Proposal:
    """Fold a fact set into the model's history without writing anything.

    Args:
        editor: id or prefix, or the one that was chosen already; None for the one in force, else the newest.

    Raises:
        UsageError: there is no editor, or another one is in force.
    """
    refs = tuple(map(reference, facts))
    with ledger.read() as db:
        entries, head = store.fold(db, model.id), store.head(db, model.id)
        now = _in_force(entries, head)
        chosen = editor if isinstance(editor, Chosen) else Chosen(choose_editor(db, model, editor, now))
    active = active_facts([*entries, EntryFacts(PROPOSED, "apply", refs)])
    return Proposal(model, facts, chosen.record, head, now, superseded_by(refs, now.facts), active, chosen.made)


def reference(fact: Fact) -> FactRef:
    """A fact as the fold sees it."""
    return FactRef(fact.digest, fact.edit_digest, fact.prompt)


def edit_digests(active: Mapping[str, FactRef]) -> list[str]:
    """The active facts' edit digests in ascending order: the order in which rows are summed."""
    return sorted(fact.edit_digest for fact in active.values())


def active_now(db: sqlite3.Connection, model: ModelRecord) -> ActiveSet:
    """The facts and the editor in force after the newest entry."""
    return _in_force(store.fold(db, model.id), store.head(db, model.id))


def _in_force(entries: Sequence[EntryFacts], head: Entry) -> ActiveSet:
    """The facts in force after these entries, of which `head` is the newest."""
    facts = active_facts(entries)
    return ActiveSet(facts, head.editor_id if facts else None)


def active_with(db: sqlite3.Connection, model: ModelRecord, entry: EntryFacts) -> dict[str, FactRef]:
    """The active facts as they would be after a proposed entry."""
    return active_facts([*store.fold(db, model.id), entry])


def choose_editor(db: sqlite3.Connection, model: ModelRecord, named: str | None, now: ActiveSet) -> EditorRecord:
    """The editor of an apply: the one named, else the one in force, else the newest that was trained for the model.

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
        # Another trained method is a baseline: it is used where it is asked for, or where there is nothing else.
        there = store.editors(db, model.id)
        trained = [x for x in there if method_of(x.config).trained]
        newest = next((x for x in trained if method_of(x.config).name == "malmen"), next(iter(trained), None))
        if newest is None:
            if there:
                named = ", ".join(f"{method_of(x.config).name} ({x.id})" for x in there[:5])
                raise UsageError(
                    f"{model.name} has no trained editor, but of other methods {named}",
                    remedy=f"Name one with --method or --editor, or train one: malmen train FILE --model {model.name}",
                )
            raise UsageError(
                f"{model.name} has no editor yet",
                remedy=f"Train one: malmen train FILE --model {model.name}. Or do without: --method ultraedit.",
            )
        editor = newest
    if now.editor_id not in (None, editor.id):
        raise UsageError(
            f"{len(now.facts)} active facts were applied by editor {now.editor_id}, and editors are never mixed",
            remedy=f"Use --editor {now.editor_id}, or move all of them first: malmen rebase --editor {editor.id}",
        )
    return editor


def require_room_ahead(
    ledger: Ledger,
    model: ModelRecord,
    editor: EditorRecord,
    facts: FactSet | None = None,
    *,
    packs: Sequence[int] = (),
    rows: int = 0,
    text: int = 0,
    made: Made | None = None,
) -> None:
    """Refuse a solve whose outcome would not fit: without its rows before the model is loaded, and with them before
    they are captured.

    Args:
        facts: to be recorded. packs: sizes of the files of rows. rows: of how many edits at how many layers.
        text: bytes of anything else recorded. made: the editor, where it is kept nowhere yet and will be.

    Raises:
        MalmenError: with what is needed and what is free, on each disk.
    """
    try:
        tensors = [layer.tensor for layer in layers_of(editor.config)]
    except UnsafeFile:
        return  # whoever loads the editor says what is wrong with it
    lengths = [model.manifest.slot(name).length for name in tensors]
    missing = [name for name in tensors if not ledger.objects.contains(model.manifest.tensors[name].digest)]
    lengths += [model.manifest.slot(name).length for name in missing]
    objects = [*lengths, *packs, *sizes_of(made)]
    require_room(ledger, model, changed=tensors, objects=objects, facts=facts, rows=rows, text=text)


def few(method: str, facts: int) -> str:
    """What to say of an editor of an untrained method that was calibrated on fewer facts than `FEW`."""
    return (
        f"the normaliser is calibrated on {facts:,} fact{'' if facts == 1 else 's'} alone: some hundred make a better "
        f"edit (malmen train FILE --method {method}, then malmen rebase --method {method} for facts that are active)"
    )


def largest_set(editor: EditorRecord) -> int | None:
    """The most facts that an editor was trained to edit at once; None of a method without training."""
    largest: int | None = editor.config.get("config", {}).get("facts_per_step")
    # No step had more facts than there were to train on. A stranger's ledger may say anything.
    return None if largest is None else max(1, min(largest, editor.scores.get("rows", largest)))


def out_of_range(editor: EditorRecord, active: int) -> list[str]:
    """A warning where the editor was never trained, or calibrated, to edit as many, or as few, facts at once."""
    calibrated = editor.scores.get("calibrated_on")
    if calibrated is not None and calibrated < min(FEW, active):
        return [few(method_of(editor.config).name, calibrated)]
    largest = largest_set(editor)
    if largest is None:
        return []
    smallest = 1 if editor.config["config"].get("sample_size") else largest
    if smallest <= active <= largest:
        return []
    sizes = f"{smallest:,} to {largest:,}" if smallest < largest else f"{largest:,}"
    facts = f"{active:,} fact{'' if active == 1 else 's'}"
    return [f"{facts} at once, where this editor was trained for {sizes}: expect a poorer edit"]
