"""Planning an apply: everything it would do but write, what that would cost, and how each fact sits in the solve.

A quick plan loads no model: it is the fold of the active facts, and what applying them is reckoned to take.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from malmen_cli.facts import FactSet
from malmen_cli.ledger import Ledger, ModelRecord, reading
from malmen_cli.operations.active import Chosen, Proposal, out_of_range, propose

Choice = Callable[[Ledger], Chosen]
"""How an editor is chosen where that may make one (`method_editors.editor_by_method`)."""


@dataclass(frozen=True, slots=True)
class FactFigures:
    """How one fact of the file sits in the solve. Neither figure predicts whether the edit succeeds.

    Both are None of a method that solves no normal equation.

    Attributes:
        known: the model gives the target already, teacher-forced, before this apply.
        residual: |U S - D| / |D| over the fact's rows at all layers: 0 where the solve gives all that was wanted.
        leverage: largest u^T A^-1 u of its rows, 0 to 1: 1 where its keys share no direction with other rows, near 0
            where they are crowded, or preserved.
    """

    prompt: str
    target: str
    edit_digest: str
    known: bool
    residual: float | None
    leverage: float | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the apply would take: seconds from start to finish, bytes of memory at the peak, bytes on disk.

    Attributes:
        disk: bytes that the workspace's objects grow by (new tensors and rows). temporary: free bytes needed beside
            the checkpoint. phases: the seconds, by what they go to (`forecast.PHASES`).
    """

    seconds: float
    memory: int
    disk: int
    temporary: int
    phases: dict[str, float]


@dataclass(frozen=True)
class Trial:
    """What trying the apply in memory has shown.

    Attributes:
        edit_success: ES of the file's facts before the apply. solve: figures per layer.
        memory: bytes by parts as they were reckoned from the model's configuration, before it was loaded, and what was
            free then, per device.
    """

    figures: list[FactFigures]
    edit_success: float | None
    prediction: Forecast
    solve: dict[str, dict[str, Any]]
    warnings: list[str]
    memory: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What an apply would do.

    Attributes:
        trial: None for a quick plan, and where there is nothing to do. prediction, memory: what it would take, by the
            trial, or reckoned; None where there is nothing to do, and where nobody asked.
    """

    proposal: Proposal
    trial: Trial | None
    warnings: list[str]
    prediction: Forecast | None = None
    memory: dict[str, Any] | None = None


def plan_facts(
    ledger: Ledger,
    model: ModelRecord,
    facts: FactSet,
    editor: str | Choice | None,
    attempt: Callable[[Ledger, Proposal], Trial] | None,
    predict: Callable[[Ledger, Proposal], tuple[Forecast | None, dict[str, Any]]] | None = None,
) -> Plan:
    """Fold the facts into the model's history and, with `attempt` (`trial.attempt`), try the apply in memory.

    Without, `predict` (`prediction.predict`) reckons what it would take.

    Args:
        editor: id or prefix; a call that chooses one; None for the one in force, else the newest.

    Raises:
        WrongBase: the checkpoint is not as the ledger's head says. Locked: another process writes to it.
        MalmenError: whatever would stop the apply.
    """
    with reading(ledger, model):
        proposal = propose(ledger, model, facts, editor(ledger) if callable(editor) else editor)
        trial = attempt(ledger, proposal) if attempt is not None and proposal.is_needed else None
        prediction, memory = (None, None) if trial is None else (trial.prediction, trial.memory)
        if trial is None and predict is not None and proposal.is_needed:
            prediction, memory = predict(ledger, proposal)
    warnings = [] if trial is None else trial.warnings
    if trial is None and predict is not None and proposal.is_needed and prediction is None:
        warnings = ["how long this method takes cannot be told without trying it: leave out --quick"]
    warnings = warnings + out_of_range(proposal.editor, len(proposal.active))
    return Plan(proposal, trial, warnings, prediction, memory)


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan for `--json`."""
    proposal, facts, trial = plan.proposal, plan.proposal.facts, plan.trial
    additions = proposal.additions
    targets = {fact.edit_digest: fact.target for fact in facts}
    return {
        "model": proposal.model.name,
        "base": proposal.model.base_digest,
        "head": proposal.head.id,
        "editor": proposal.editor.id,
        "source": facts.source,
        "active_digest": proposal.active_digest,
        "in_file": len(facts) + facts.duplicates + facts.conflicts_dropped,
        "duplicates": facts.duplicates,
        "conflicts_dropped": facts.conflicts_dropped,
        "new": len(additions.new),
        "already_active": len(additions.already_active),
        "superseded": [
            {"prompt": new.prompt, "target": targets[new.edit_digest], "supersedes": old.fact_digest}
            for new, old in additions.superseding
        ],
        "active": len(proposal.active),
        "already_known": None if trial is None else sum(fact.known for fact in trial.figures),
        "ES_before": None if trial is None else trial.edit_success,
        "facts": None if trial is None else [asdict(fact) for fact in trial.figures],
        "prediction": None if plan.prediction is None else asdict(plan.prediction),
        "memory_plan": plan.memory,
        "solve": None if trial is None else trial.solve,
        "warnings": plan.warnings,
    }
