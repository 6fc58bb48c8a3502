"""Taking facts out of the active set, as a new entry.

Where the resulting active set was in force before (the newest entry reverted, everything reverted), its bytes come from
the objects and neither torch nor the model is loaded; else the stored rows of what remains are solved again. The
language model is loaded only where a fact comes back that the editor in force has no rows of, as after a rebase, and
for a method that keeps no rows.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from malmen_cli.checkpoint.digests import short
from malmen_cli.errors import MalmenError, UsageError, VerificationFailed
from malmen_cli.facts import FactSet
from malmen_cli.ledger import (
    Entry,
    EntryDraft,
    EntryFacts,
    FactRef,
    Ledger,
    ModelRecord,
    NewRows,
    ParameterDelta,
    Settlement,
    active_digest,
    commit_entry,
    putting_back,
    revert_from_objects,
    reverters,
    store,
    writing,
)
from malmen_cli.ledger.records import FIGURES
from malmen_cli.operations.active import PROPOSED, active_now, active_with, reference
from malmen_cli.operations.states import TensorBytes

_INSTEAD = {
    "register": "`malmen log` lists applies and reverts.",
    "rebase": "Move the facts back: malmen rebase --editor ID; `malmen show` names the former editor.",
}
_OF_A_SOLVE = ("rounding_loss", "ridge", "step_size", "preserved_strength")
_NAMED = 3  # reverts that are named as those that took an entry's facts out


@dataclass(frozen=True)
class Reverted:
    """What `revert` did.

    Attributes:
        removed, revived: facts that left and that came (back) into force. unmoved: those named that stay in
            force, or out of it, by the reason. solved: the rest was solved again.
        anew: it was made anew with the language model, by a method that keeps no rows. captured: facts that came back
            without rows of this editor's, which the language model was run for.
    """

    entry: Entry
    target: Entry
    removed: list[FactRef]
    revived: list[FactRef]
    unmoved: Mapping[str, Sequence[FactRef]]
    active: int
    solved: bool
    warnings: list[str]
    settlement: Settlement | None
    anew: bool = False
    captured: int = 0


def revert_entry(
    ledger: Ledger,
    model: ModelRecord,
    target_id: str,
    fact_numbers: Sequence[int],
    command: str,
    *,
    device: str = "cpu",
    lock_timeout: float = 0.0,
) -> Reverted:
    """Take an apply's or a revert's facts out of effect: all of them, or those of the given numbers (from 1).

    Raises:
        UsageError: the entry cannot be reverted, has no such fact, or none of its facts is in effect.
    """
    with writing(ledger, model, command, timeout=lock_timeout) as settlement, ExitStack() as stack:
        with ledger.read() as db:
            target = store.resolve_entry(db, target_id, model.id)
            facts = store.facts_of(db, target)
            history = store.fold(db, model.id)
            now = active_now(db, model)
        if target.kind not in ("apply", "revert"):
            raise UsageError(f"a {target.kind} entry cannot be reverted", remedy=_INSTEAD[target.kind])
        wrong = [number for number in fact_numbers if not 1 <= number <= len(facts)]
        if wrong:
            raise UsageError(
                f"entry {target_id} has facts 1 to {len(facts)}, not {wrong[0]}",
                remedy=f"`malmen show {shlex.quote(target_id)}` numbers them.",
            )
        chosen = [facts[number - 1] for number in dict.fromkeys(fact_numbers)] if fact_numbers else facts
        by = reverters(history)[target.id]
        if all(fact.digest in by for fact in chosen):
            names = [short(entry) for entry in dict.fromkeys(by[fact.digest] for fact in chosen)]
            what = "those facts are" if fact_numbers else f"entry {target_id} is"
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            raise UsageError(
                f"{what} reverted already, by {', '.join(names[:_NAMED])}{more}",
                remedy=f"To undo that: {'; '.join(f'malmen revert {name}' for name in names[:_NAMED])}",
            )
        taken = FactSet(tuple(chosen), target.source or "-")
        refs = tuple(map(reference, chosen))
        proposed = EntryFacts(PROPOSED, "revert", refs, target.id)
        with ledger.read() as db:
            active = active_with(db, model, proposed)
            # With nothing in force, the editor that was when the target was made: a revert records it too.
            editor_id = now.editor_id or target.editor_id
            digest = active_digest(editor_id, active)
            wanted = store.find_state(db, model.id, digest)
            head = store.head(db, model.id)
            newest = store.deltas_of(db, head.id)
        warnings: list[str] = []
        rows: list[NewRows] = []
        details: dict[str, Any] = {"from": "objects"}
        captured = 0
        changes = None
        if wanted is not None:
            try:
                changes = revert_from_objects(ledger, model, wanted)
            except VerificationFailed as error:
                if not active or not _is_lost(error):  # of the base there is nothing to solve
                    raise
                warnings.append(f"solved again, since earlier bytes are lost: {error.message}")
                details = {"from": "rows"}
                with suppress(MalmenError):  # where the very bytes are not to be had, others are solved for
                    changes = revert_from_objects(ledger, model, wanted, TensorBytes(ledger, model).get)
        if changes is not None:
            # Undoing the newest entry moves every weight back by as much as it had moved.
            figures = {delta.tensor: delta for delta in newest}
            deltas = [
                _mirrored(figures[c.name], c.before, c.after)
                for c in changes
                if c.name in figures and figures[c.name].before == c.after and figures[c.name].after == c.before
            ]
        else:
            from malmen_cli.operations.environment import environment
            from malmen_cli.operations.models import pick_device
            from malmen_cli.operations.workbench import Workbench, facts_of_active

            assert editor_id is not None
            with ledger.read() as db:
                editor = store.editor(db, editor_id)
            bench = stack.enter_context(
                Workbench(ledger, model, editor, active, device=pick_device(device), store_rows=True)
            )
            if captured := sum(map(bench.lacks_rows, bench.edits)):
                bench.capture(facts_of_active(ledger, active), recorded=taken)
            solved = bench.solve()
            changes, deltas, rows = solved.changes, solved.deltas, bench.fresh
            warnings += solved.warnings
            made = "rows" if editor.per_fact else "model"
            details = {"from": made, **environment(bench.placement.device)}
        # By what the weights depend on: the same edit may be another record's, with other tags.
        before, after = ({fact.edit_digest for fact in facts.values()} for facts in (now.facts, active))
        removed = [fact for fact in now.facts.values() if fact.edit_digest not in after]
        revived = [fact for fact in active.values() if fact.edit_digest not in before]
        entry = commit_entry(
            ledger,
            EntryDraft(
                model=model,
                kind="revert",
                active_digest=digest,
                changes=changes,
                fact_set=taken,
                target=target.id,
                editor_id=editor_id,
                deltas=deltas,
                new_rows=rows,
                command=command,
                details={
                    "facts": {
                        "taken_out": len(chosen),
                        "removed": len(removed),
                        "revived": len(revived),
                        "active": len(active),
                    },
                    "warnings": warnings,
                    **details,
                },
            ),
        )
        return Reverted(
            entry=entry,
            target=target,
            removed=removed,
            revived=revived,
            unmoved=_unmoved(refs, before, after, back=PROPOSED in putting_back([*history, proposed])),
            active=len(active),
            solved=details["from"] != "objects",
            warnings=warnings,
            settlement=settlement,
            anew=details["from"] == "model",
            captured=captured,
        )


def _unmoved(named: Sequence[FactRef], before: Set[str], after: Set[str], *, back: bool) -> dict[str, list[FactRef]]:
    """Of the facts that were to leave (`back`: to come back), those that did not, by the reason.

    Args:
        before, after: edits in force.
    """
    stay = [fact for fact in named if fact.edit_digest in before and fact.edit_digest in after]
    out = [fact for fact in named if fact.edit_digest not in before and fact.edit_digest not in after]
    staying = "in force before" if back else "in force by another entry too"
    other = "superseded, or reverted by another entry too" if back else "superseded or reverted before"
    return {words: facts for words, facts in ((staying, stay), (other, out)) if facts}


def _is_lost(error: BaseException | None) -> bool:
    """Whether bytes are missing or damaged, by the error of who read them; what only cannot be read today is not."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error is None or isinstance(error, FileNotFoundError)


def _mirrored(delta: ParameterDelta, before: str, after: str) -> ParameterDelta:
    same = {name: getattr(delta, name) for name in FIGURES if name not in _OF_A_SOLVE}
    return ParameterDelta(delta.tensor, before, after, **same)
