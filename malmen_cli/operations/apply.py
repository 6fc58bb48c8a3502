"""Applying a fact set: rows, one solve over all active facts, a check of the edited model, one ledger entry."""

from __future__ import annotations

import platform
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from malmen_cli import __version__
from malmen_cli.checkpoint.new_folder import refuse_existing
from malmen_cli.errors import StalePlan
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
from malmen_cli.operations.active import Proposal, out_of_range, propose, require_room_ahead
from malmen_cli.operations.checking import Check, Questions
from malmen_cli.operations.copies import write_copy
from malmen_cli.operations.packed_texts import PackedTexts
from malmen_cli.operations.solving import Solved
from malmen_cli.operations.workbench import Progress, Workbench, silent


@dataclass(frozen=True)
class Applied:
    """What `apply` did. `entry` is None where the ledger got none: a dry run, a copy, or every fact active already.

    Attributes:
        active: facts in force afterwards. check: None where there was nothing to do. output: the edited copy.
    """

    entry: Entry | None
    proposal: Proposal
    check: Check | None
    warnings: list[str]
    settlement: Settlement | None
    output: Path | None = None

    @property
    def active(self) -> int:
        return len(self.proposal.active)


@dataclass(frozen=True)
class ApplyOptions:
    """How to apply.

    Attributes:
        editor: id or None for the default. batch_tokens: padded tokens per batch of the model.
        sample: facts whose answers are shown. check_old: most older facts asked again.
        dry_run: stop before writing. output: write an edited copy there, and nothing else.
        expected: the active digest and the head that a saved plan was made for.
        lock_timeout: seconds to wait for another process.
    """

    editor: str | None = None
    device: str = "cpu"
    batch_tokens: int = 1024
    sample: int = 5
    check_old: int = 256
    dry_run: bool = False
    output: Path | None = None
    expected: tuple[str, str] | None = None
    lock_timeout: float = 0.0
    progress: Progress = silent


def apply_facts(ledger: Ledger, model: ModelRecord, facts: FactSet, options: ApplyOptions, command: str) -> Applied:
    """Add a fact set to the active facts of a model and write the edited checkpoint, or a copy, or (dry run) nothing.

    Raises:
        MalmenError: anything that is wrong, before the checkpoint or the ledger is touched.
    """
    if options.dry_run or options.output is not None:
        if options.output is not None:
            refuse_existing(options.output)
        with unmoved(ledger, model, checked=True):  # the copy is, and stays where it is
            return _without_entry(ledger, model, facts, options)
    with writing(ledger, model, command, timeout=options.lock_timeout) as settlement, ExitStack() as stack:
        proposal = _propose(ledger, model, facts, options)
        if not proposal.is_needed:
            return Applied(None, proposal, None, [], settlement)
        require_room_ahead(ledger, model, proposal.editor, facts)
        bench = stack.enter_context(open_bench(ledger, proposal, options, store_rows=True))
        solved, check = _edit(bench, proposal, options)
        warnings = solved.warnings + out_of_range(proposal.editor, len(bench.edits))
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
            details=_details(proposal, solved, check, warnings, bench.placement.device),
        )
        entry = commit_entry(ledger, draft, [layer.tensor for layer in bench.layers])
        return Applied(entry, proposal, check, warnings, settlement)


def _without_entry(ledger: Ledger, model: ModelRecord, facts: FactSet, options: ApplyOptions) -> Applied:
    """A dry run, or an edited copy: neither the source, nor the ledger, nor its head changes."""
    with reading(ledger, model):
        proposal = _propose(ledger, model, facts, options)
        if not proposal.is_needed and options.output is None:
            return Applied(None, proposal, None, [], None)
        bench = open_bench(ledger, proposal, options)
        solved, check = _edit(bench, proposal, options)
    warnings = solved.warnings + out_of_range(proposal.editor, len(bench.edits))
    if options.output is not None and not options.dry_run:
        write_copy(options.output, proposal, bench, solved, check)
    return Applied(None, proposal, check, warnings, None, None if options.dry_run else options.output)


def _propose(ledger: Ledger, model: ModelRecord, facts: FactSet, options: ApplyOptions) -> Proposal:
    proposal = propose(ledger, model, facts, options.editor)
    if options.expected is not None and options.expected != (proposal.active_digest, proposal.head.id):
        raise StalePlan(
            "the plan is stale: the ledger has moved on since it was made",
            remedy="Plan again: malmen plan FILE -o PLAN, and apply that.",
        )
    return proposal


def _edit(bench: Workbench, proposal: Proposal, options: ApplyOptions) -> tuple[Solved, Check]:
    """The edited model in memory: captured, asked before, solved, asked after."""
    with bench.ledger.read() as db:
        # The digests' order is as good as random, and the same every time.
        old = store.facts_with(db, sorted(proposal.kept())[: options.check_old])
    facts, tokens = proposal.facts.facts, bench.tokenizing
    edits = PackedTexts(tokens(fact.prompt, fact.target) for fact in facts)
    # Capture comes first: bad facts (too long for the model, say) are refused before anything is asked.
    bench.capture(facts, edits, proposal.facts)
    model = bench.language_model
    questions = Questions(model, facts, list(old.values()), options.sample, edits)
    before = questions.scores(), questions.answers()
    solved = bench.solve()
    model.overlay(solved.weights)
    return solved, questions.check(*before)


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
    )


def _details(proposal: Proposal, solved: Solved, check: Check, warnings: list[str], device: str) -> dict[str, Any]:
    facts, additions = proposal.facts, proposal.additions
    return {
        "facts": {
            "in_file": len(facts) + facts.duplicates,
            "duplicates": facts.duplicates,
            "new": len(additions.new),
            "already_active": len(additions.already_active),
            "superseded": [old.fact_digest for _, old in additions.superseding],
            "active": len(proposal.active),
        },
        "check": check.as_dict(),
        "solve": solved.figures,
        "warnings": warnings,
        **environment(device),
    }


def environment(device: str) -> dict[str, Any]:
    """What the figures of an entry were made with."""
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": {
            "malmen": __version__,
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
    }
