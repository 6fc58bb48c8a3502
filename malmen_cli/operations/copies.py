"""An edited copy of a checkpoint, for `apply --output`: the source, the ledger and its head stay as they are."""

from __future__ import annotations

from pathlib import Path

from malmen_cli.checkpoint.copy import copy_checkpoint
from malmen_cli.methods.registry import method_of
from malmen_cli.operations.active import Proposal
from malmen_cli.operations.checking import Check
from malmen_cli.operations.hub_models import origin_of
from malmen_cli.operations.provenance import CARD, LISTED, PROVENANCE, model_card, provenance, provenance_file
from malmen_cli.operations.solving import Solved
from malmen_cli.operations.workbench import Workbench, facts_of_active


def write_copy(target: Path, proposal: Proposal, bench: Workbench, solved: Solved, check: Check) -> None:
    """The model's folder with the solved tensors in it, what it comes from, and a model card; whole or not at all.

    Raises:
        UsageError: the target exists and is not an empty folder. MalmenError: the disk does not take it.
    """
    with bench.ledger.read() as db:
        origin = origin_of(db, proposal.model)
    record = provenance(
        proposal.model,
        entry=None,
        editor=proposal.editor.id,
        active=proposal.active,
        tensors=bench.state | {change.name: change.after for change in solved.changes},
        layers=bench.layers,
        method=method_of(proposal.editor.config).name,
        origin=origin,
    )
    facts = list(proposal.facts.facts[:LISTED])  # which are in no ledger
    seen = {fact.digest for fact in facts}
    others = sorted((x for x in proposal.active.values() if x.fact_digest not in seen), key=lambda x: x.edit_digest)
    facts += facts_of_active(bench.ledger, {x.prompt: x for x in others[: LISTED - len(facts)]})
    card = model_card(record, facts=facts, scores=check.after.as_dict())
    copy_checkpoint(
        proposal.model.path,
        proposal.model.manifest,
        solved.changes,
        target,
        {PROVENANCE: provenance_file(record), CARD: card.encode()},
        state=bench.state,
    )
