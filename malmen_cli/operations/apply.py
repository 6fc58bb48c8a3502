"""Applying a fact set: rows, one solve over all active facts, a check of the edited model, one ledger entry."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malmen_cli.errors import RefusedByGate, StalePlan
from malmen_cli.evaluation.gates import Gates
from malmen_cli.evaluation.verdicts import Verdicts
from malmen_cli.facts import FactSet
from malmen_cli.ledger import (
    Entry,
    EntryDraft,
    Ledger,
    ModelRecord,
    Settlement,
    commit_entry,
    reading,
    store,
    unmoved,
    writing,
)
from malmen_cli.operations.active import Chosen, Proposal, out_of_range, propose, require_room_ahead, warnings_of
from malmen_cli.operations.checking import Check, Questions
from malmen_cli.operations.copies import write_copy
from malmen_cli.operations.environment import environment
from malmen_cli.operations.gates import judge, require_askable
from malmen_cli.operations.method_editors import MethodRequest, editor_by_method
from malmen_cli.operations.packed_texts import PackedTexts
from malmen_cli.operations.places import require_new_folder
from malmen_cli.operations.solving import Solved
from malmen_cli.operations.workbench import Progress, Workbench, silent


@dataclass(frozen=True)
class Applied:
    """What `apply` did. `entry` is None where the ledger got none: a dry run, a copy, or every fact active already.

    Attributes:
        active: facts in force afterwards. check: None where there was nothing to do. output: the edited copy.
        verdicts: what came of the gates; None where there were none, or nothing to do.
    """

    entry: Entry | None
    proposal: Proposal
    check: Check | None
    warnings: list[str]
    settlement: Settlement | None
    output: Path | None = None
    verdicts: Verdicts | None = None

    @property
    def active(self) -> int:
        return len(self.proposal.active)


@dataclass(frozen=True)
class ApplyOptions:
    """How to apply.

    Attributes:
        editor: id or None for the default. method: an editor by its method instead.
        batch_tokens: padded tokens per batch of the model.
        sample: facts whose answers are shown. check_old: most older facts asked again.
        dry_run: stop before writing. output: write an edited copy there, and nothing else.
        gates: what must hold of the edited model, else nothing is written.
        expected: the active digest and the head that a saved plan was made for.
        lock_timeout: seconds to wait for another process.
    """

    editor: str | None = None
    method: MethodRequest | None = None
    device: str = "cpu"
    batch_tokens: int | None = None
    sample: int = 5
    check_old: int = 256
    dry_run: bool = False
    output: Path | None = None
    gates: Gates | None = None
    expected: tuple[str, str] | None = None
    lock_timeout: float = 0.0
    progress: Progress = silent


def apply_facts(ledger: Ledger, model: ModelRecord, facts: FactSet, options: ApplyOptions, command: str) -> Applied:
    """Add a fact set to the active facts of a model and write the edited checkpoint, or a copy, or (dry run) nothing.

    Raises:
        RefusedByGate: a gate does not hold, whatever would have been written; its `outcome` is an `Applied`.
        MalmenError: anything that is wrong, before the checkpoint or the ledger is touched.
    """
    if options.dry_run or options.output is not None:
        if options.output is not None:
            require_new_folder(ledger, options.output)
        with unmoved(ledger, model, checked=True):  # the copy is, and stays where it is
            return _without_entry(ledger, model, facts, options)
    with writing(ledger, model, command, timeout=options.lock_timeout) as settlement, ExitStack() as stack:
        proposal = _propose(ledger, model, facts, options)
        if not proposal.is_needed:
            return Applied(None, proposal, None, [], settlement)
        require_room_ahead(ledger, model, proposal.editor, facts, made=proposal.made)
        bench = stack.enter_context(open_bench(ledger, proposal, options, store_rows=True))
        solved, check, verdicts = _edit(bench, proposal, options)
        warnings = _warnings(proposal, solved)
        _require(Applied(None, proposal, check, warnings, settlement, verdicts=verdicts))
        draft = EntryDraft(
            model=model,
            kind="apply",
            active_digest=proposal.active_digest,
            changes=solved.changes,
            fact_set=facts,
            editor_id=proposal.editor.id,
            deltas=solved.deltas,
            new_rows=bench.fresh,
            command=command,
            details=_details(proposal, solved, check, verdicts, warnings, bench.placement.device),
        )
        if proposal.made is not None:  # kept now, when nothing is refused any more
            proposal.made.keep(ledger, model)
        entry = commit_entry(ledger, draft, [layer.tensor for layer in bench.layers])
        return Applied(entry, proposal, check, warnings, settlement, verdicts=verdicts)


def _without_entry(ledger: Ledger, model: ModelRecord, facts: FactSet, options: ApplyOptions) -> Applied:
    """A dry run, or an edited copy: neither the source, nor the ledger, nor its head changes."""
    with reading(ledger, model):
        proposal = _propose(ledger, model, facts, options)
        if not proposal.is_needed and options.output is None:
            return Applied(None, proposal, None, [], None)
        bench = open_bench(ledger, proposal, options)
        solved, check, verdicts = _edit(bench, proposal, options)
    warnings = _warnings(proposal, solved)
    _require(Applied(None, proposal, check, warnings, None, verdicts=verdicts))
    if options.output is not None and not options.dry_run:
        write_copy(options.output, proposal, bench, solved, check)
    return Applied(None, proposal, check, warnings, None, None if options.dry_run else options.output, verdicts)


def _require(applied: Applied) -> None:
    """Refuse what does not pass all gates."""
    failed = [] if applied.verdicts is None else applied.verdicts.failed
    if failed:
        count, held = len(failed), "gate does" if len(failed) == 1 else "gates do"
        raise RefusedByGate(
            f"{count} {held} not hold ({', '.join(str(verdict.gate) for verdict in failed)}), nothing was written",
            remedy="Leave out the facts that are named, lower the gate, or use another editor or method.",
            outcome=applied,
        )


def _propose(ledger: Ledger, model: ModelRecord, facts: FactSet, options: ApplyOptions) -> Proposal:
    chosen: str | Chosen | None = options.editor
    if options.method is not None:
        chosen = editor_by_method(
            ledger,
            model,
            options.method,
            facts.facts,
            device=options.device,
            batch_tokens=options.batch_tokens,
            progress=options.progress,
        )
    proposal = propose(ledger, model, facts, chosen)
    if options.expected is not None and options.expected != (proposal.active_digest, proposal.head.id):
        raise StalePlan(
            "the plan is stale: the ledger has moved on since it was made",
            remedy="Plan again: malmen plan FILE -o PLAN, and apply that.",
        )
    return proposal


def _edit(bench: Workbench, proposal: Proposal, options: ApplyOptions) -> tuple[Solved, Check, Verdicts | None]:
    """The edited model in memory: captured, asked before, solved, asked after, and what the gates require."""
    with bench.ledger.read() as db:
        # The digests' order is as good as random, and the same every time.
        old = store.facts_with(db, sorted(proposal.kept())[: options.check_old])
    facts, tokens = proposal.facts.facts, bench.tokenizing
    if options.gates is not None:
        require_askable(bench, options.gates)
    edits = PackedTexts(tokens.all_of((fact.prompt, fact.target) for fact in facts))
    # Capture comes first: bad facts (too long for the model, say) are refused before anything is asked.
    bench.capture(facts, edits, proposal.facts, ask=True)
    model = bench.language_model
    questions = Questions(model, bench.asked, facts, list(old.values()), options.sample, edits)
    before = questions.scores(), questions.answers()
    solved = bench.solve()
    model.overlay(solved.weights)
    check = questions.check(*before)
    return solved, check, None if options.gates is None else judge(bench, proposal, solved, options.gates)


def open_bench(ledger: Ledger, proposal: Proposal, options: ApplyOptions, *, store_rows: bool = False) -> Workbench:
    return Workbench(
        ledger,
        proposal.model,
        proposal.editor,
        proposal.active,
        device=options.device,
        batch_tokens=options.batch_tokens,
        store_rows=store_rows,
        progress=options.progress,
        made=proposal.made,
    )


def _warnings(proposal: Proposal, solved: Solved) -> list[str]:
    return [*warnings_of(proposal.made), *solved.warnings, *out_of_range(proposal.editor, len(proposal.active))]


def _details(
    proposal: Proposal, solved: Solved, check: Check, verdicts: Verdicts | None, warnings: list[str], device: str
) -> dict[str, Any]:
    facts, additions = proposal.facts, proposal.additions
    return {
        "facts": {
            "in_file": len(facts) + facts.duplicates + facts.conflicts_dropped,
            "duplicates": facts.duplicates,
            "conflicts_dropped": facts.conflicts_dropped,
            "new": len(additions.new),
            "already_active": len(additions.already_active),
            "superseded": [old.fact_digest for _, old in additions.superseding],
            "active": len(proposal.active),
        },
        "check": check.as_dict(),
        **({} if verdicts is None else {"gates": verdicts.as_dict(worst=False)}),
        "solve": solved.figures,
        "warnings": warnings,
        **environment(device),
    }
