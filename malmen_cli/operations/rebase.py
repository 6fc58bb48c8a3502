"""Moving all active facts to another editor: their rows captured anew under it, one solve, one entry."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

from malmen_cli.errors import UsageError
from malmen_cli.ledger import (
    EditorRecord,
    Entry,
    EntryDraft,
    Ledger,
    ModelRecord,
    Settlement,
    active_digest,
    commit_entry,
    store,
    writing,
)
from malmen_cli.operations.active import Chosen, active_now, out_of_range, require_room_ahead
from malmen_cli.operations.checking import Check, Questions
from malmen_cli.operations.environment import environment
from malmen_cli.operations.method_editors import MethodRequest, editor_by_method
from malmen_cli.operations.workbench import Progress, Workbench, facts_of_active, silent


@dataclass(frozen=True)
class Rebased:
    """What `rebase` did; `entry` is None where that editor is in force already, or no fact is active.

    Attributes:
        former: the editor that was in force. check: the active facts under the former editor and under the new one.
    """

    entry: Entry | None
    editor: EditorRecord
    former: str | None
    active: int
    restored: list[str]
    check: Check | None
    warnings: list[str]
    settlement: Settlement | None


def rebase(
    ledger: Ledger,
    model: ModelRecord,
    editor: str | MethodRequest,
    command: str,
    *,
    device: str = "cpu",
    batch_tokens: int | None = None,
    check_facts: int = 256,
    sample: int = 5,
    lock_timeout: float = 0.0,
    progress: Progress = silent,
) -> Rebased:
    """Make `editor` the one in force: W0 + S of the same active facts, solved from its own rows.

    Layers that the former editor edited and this one leaves out go back to the base.

    Args:
        editor: id or prefix; or a method, whose newest editor is taken, or made from the active facts.
        check_facts: most active facts asked before and after. sample: of those, shown.

    Raises:
        UnknownName: there is no such editor. UsageError: it belongs to another model.
    """
    with writing(ledger, model, command, timeout=lock_timeout) as settlement, ExitStack() as stack:
        with ledger.read() as db:
            now = active_now(db, model)
        facts = facts_of_active(ledger, now.facts)
        if isinstance(editor, MethodRequest):
            chosen = editor_by_method(
                ledger,
                model,
                editor,
                facts,
                beside=True,
                make=bool(facts),
                device=device,
                batch_tokens=batch_tokens,
                progress=progress,
            )
        else:
            with ledger.read() as db:
                chosen = Chosen(store.editor(db, editor))
        record = chosen.record
        if record.model_id != model.id:
            raise UsageError(
                f"editor {record.id} belongs to another model", remedy="malmen models show lists a model's."
            )
        if not now.facts or now.editor_id == record.id:
            return Rebased(None, record, now.editor_id, len(now.facts), [], None, [], settlement)
        require_room_ahead(ledger, model, record, made=chosen.made)
        bench = stack.enter_context(
            Workbench(
                ledger,
                model,
                record,
                now.facts,
                device=device,
                batch_tokens=batch_tokens,
                store_rows=True,
                progress=progress,
                made=chosen.made,
            )
        )
        bench.capture(facts)
        questions = Questions(bench.language_model, bench.asked, list(facts[:check_facts]), [], sample)
        before = questions.scores(), questions.answers()
        solved = bench.solve()
        bench.language_model.overlay(solved.weights)
        check = questions.check(*before)
        own = {layer.tensor for layer in bench.layers}
        restored = [change.name for change in solved.changes if change.name not in own]
        warnings = [*chosen.warnings, *solved.warnings, *out_of_range(record, len(bench.edits))]
        if chosen.made is not None:
            record = chosen.made.keep(ledger, model)
        entry = commit_entry(
            ledger,
            EntryDraft(
                model=model,
                kind="rebase",
                active_digest=active_digest(record.id, now.facts),
                changes=solved.changes,
                editor_id=record.id,
                deltas=solved.deltas,
                new_rows=bench.fresh,
                command=command,
                details={
                    "facts": {"active": len(now.facts)},
                    "former_editor": now.editor_id,
                    "restored": restored,
                    "check": check.as_dict(),
                    "solve": solved.figures,
                    "warnings": warnings,
                    **environment(bench.placement.device),
                },
            ),
            [layer.tensor for layer in bench.layers],
        )
        return Rebased(entry, record, now.editor_id, len(now.facts), restored, check, warnings, settlement)
