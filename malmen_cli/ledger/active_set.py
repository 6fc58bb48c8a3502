"""The fold: which facts are in effect after a list of entries. Pure functions, no database.

The edited weights are a function of (base, active facts, editor), so everything the ledger promises about reverting,
superseding and commuting entries is decided here:

    remaining(e) = facts(e) - union of remaining(r) over later reverts r of e
    active       = for each prompt, the last fact of the apply entries' remaining ones

A revert lists the facts it takes out of its target; reverting a revert therefore gives them back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from malmen_cli.checkpoint.digests import digest_json

Fate = Literal["in effect", "held by another entry", "superseded", "reverted"]
"""What became of an entry's fact since; the checkpoint holds those of the first two kinds."""

# The digest of the empty active set: the base, whichever editor is in force.
NOTHING_ACTIVE = digest_json({"edits": [], "editor": None})


@dataclass(frozen=True, slots=True)
class FactRef:
    """A fact as the fold sees it: the whole record's digest, the digest of what its rows depend on, its prompt."""

    fact_digest: str
    edit_digest: str
    prompt: str


@dataclass(frozen=True, slots=True)
class EntryFacts:
    """An entry as the fold sees it; `target` is the entry that a revert points at."""

    id: str
    kind: str
    facts: tuple[FactRef, ...] = ()
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Additions:
    """New facts sorted by what they do to the active ones; `superseding` pairs each with the fact it replaces."""

    new: tuple[FactRef, ...]
    already_active: tuple[FactRef, ...]
    superseding: tuple[tuple[FactRef, FactRef], ...]


def reverters(entries: Sequence[EntryFacts]) -> dict[str, dict[str, str]]:
    """Per entry id, by the digest of each of its facts that later reverts have taken out, the newest of these reverts.

    Entries are in ledger order. A revert that is itself reverted takes nothing out.
    """
    taken: dict[str, dict[str, str]] = {entry.id: {} for entry in entries}
    for entry in reversed(entries):
        if entry.kind == "revert" and entry.target is not None:
            of_target = taken.setdefault(entry.target, {})
            for fact in entry.facts:
                if fact.fact_digest not in taken[entry.id]:
                    of_target.setdefault(fact.fact_digest, entry.id)
    return taken


def remaining(entries: Sequence[EntryFacts]) -> dict[str, frozenset[str]]:
    """Per entry id, the digests of its facts that no later revert has taken out. Entries are in ledger order."""
    taken = reverters(entries)
    return {entry.id: frozenset(fact.fact_digest for fact in entry.facts) - taken[entry.id].keys() for entry in entries}


def active_facts(entries: Sequence[EntryFacts]) -> dict[str, FactRef]:
    """The active fact of every prompt, in the order in which they came into effect. Entries are in ledger order."""
    left = remaining(entries)
    active: dict[str, FactRef] = {}
    for entry in entries:
        for fact in entry.facts if entry.kind == "apply" else ():
            if fact.fact_digest in left[entry.id]:
                active.pop(fact.prompt, None)
                active[fact.prompt] = fact
    return active


def fates(entries: Sequence[EntryFacts], entry_id: str, facts: Iterable[FactRef]) -> list[Fate]:
    """What became of each fact of one of the entries; of a revert, of its taking them out. Entries are in ledger order.

    Args:
        facts: of a rebase all that were active then: nothing is reverted in a rebase's name, and there a prompt that
            has another target now tells that the fact was superseded.
    """
    kind = next(entry.kind for entry in entries if entry.id == entry_id)
    left, active = remaining(entries)[entry_id], active_facts(entries)
    edits = {fact.edit_digest for fact in active.values()}

    def fate(fact: FactRef) -> Fate:
        own = fact.prompt in active if kind == "rebase" else fact.fact_digest in left
        if kind == "revert":
            return "in effect" if own else "reverted"
        if fact.edit_digest in edits:
            return "in effect" if own else "held by another entry"
        return "superseded" if own else "reverted"

    return [fate(fact) for fact in facts]


def putting_back(entries: Iterable[EntryFacts]) -> set[str]:
    """Ids of the reverts that bring facts back into effect: of those whose target is itself a revert that took facts
    out. Entries are in ledger order."""
    taking_out, back = set[str](), set[str]()
    for entry in entries:
        if entry.kind == "revert":
            (back if entry.target in taking_out else taking_out).add(entry.id)
    return back


def superseded_by(new: Iterable[FactRef], active: Mapping[str, FactRef]) -> Additions:
    """Sort `new` facts against the active ones: unknown prompt, the very same edit, or another target for a prompt."""
    fresh, known, superseding = [], [], []
    for fact in new:
        old = active.get(fact.prompt)
        if old is None:
            fresh.append(fact)
        elif old.edit_digest == fact.edit_digest:
            known.append(fact)
        else:
            superseding.append((fact, old))
    return Additions(tuple(fresh), tuple(known), tuple(superseding))


def active_digest(editor_id: str | None, active: Mapping[str, FactRef]) -> str:
    """Names the edited weights: one digest per editor and set of active edits, whatever order they came in."""
    if not active:
        return NOTHING_ACTIVE
    return digest_json({"edits": sorted(fact.edit_digest for fact in active.values()), "editor": editor_id})
