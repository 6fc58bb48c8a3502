"""Trying an apply in memory for a plan: rows, solve, how each fact sits in it, and what the whole would cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from malmen_cli.editing.solution import Solution
from malmen_cli.evaluation.metrics import mean, token_accuracy
from malmen_cli.evaluation.results import KINDS, prompts_of
from malmen_cli.facts import Fact
from malmen_cli.language_models.block_rates import clock_of
from malmen_cli.ledger import Ledger
from malmen_cli.methods.per_fact import Answer
from malmen_cli.operations.active import Proposal, sizes_of, warnings_of
from malmen_cli.operations.apply import ApplyOptions, open_bench
from malmen_cli.operations.forecast import asking
from malmen_cli.operations.layers import TensorLayer
from malmen_cli.operations.plan import FactFigures, Forecast, Trial
from malmen_cli.operations.reckoning import Reckoned, reckon
from malmen_cli.operations.solving import Solved
from malmen_cli.operations.spent import resident_peak
from malmen_cli.operations.workbench import Workbench


def attempt(options: ApplyOptions) -> Callable[[Ledger, Proposal], Trial]:
    """What `plan_facts` takes: the apply of a proposal with these options, but for asking twice and writing."""
    return partial(_attempt, options=options)


def _attempt(ledger: Ledger, proposal: Proposal, *, options: ApplyOptions) -> Trial:
    bench = open_bench(ledger, proposal, options)
    bench.require_room()  # before measuring this machine takes any
    reckoned = reckon(ledger, proposal, options)
    facts = proposal.facts.facts
    clock = clock_of(bench.device)
    times = [clock()]
    bench.language_model  # noqa: B018  loads it
    times.append(clock())
    bench.capture(facts)
    times.append(clock())
    known = _ask(bench, facts)
    times.append(clock())
    watch = _Watch(bench, clock)
    solved = bench.solve(inspect=watch)
    times.append(clock() - watch.seconds)
    took = {phase: times[i + 1] - times[i] for i, phase in enumerate(("load", "capture", "ask", "solve"))}
    if proposal.made is not None:  # which the apply will do as well
        took["load"] += proposal.made.seconds
    return Trial(
        figures=watch.figures(facts, [share == 1 for share in known]),
        edit_success=mean(known),
        prediction=_predict(proposal, bench, solved, reckoned, took),
        solve=solved.figures,
        warnings=[*warnings_of(proposal.made), *solved.warnings],
        memory=reckoned.memory,
    )


def _ask(bench: Workbench, facts: tuple[Fact, ...]) -> list[float]:
    """Per fact the share of target tokens that the model gives now. All is asked that an apply asks: it takes time."""
    model = bench.language_model
    tokens = model.tokenizing
    texts = list(tokens.all_of((fact.prompt, fact.target) for fact in facts))
    others = [
        tokens.fits(prompt, target)
        for kind in KINDS[1:]
        for fact in facts
        for _, prompt, target in prompts_of(fact, (kind,))
    ]
    token_accuracy(model, [text for text in others if text is not None], batch_tokens=bench.batch_tokens)
    return token_accuracy(model, texts, batch_tokens=bench.batch_tokens)


class _Watch:
    """Collects residuals and leverages per edit while the layers are solved, one after another.

    Methods that solve no normal equation have neither.
    """

    def __init__(self, bench: Workbench, clock: Callable[[], float]) -> None:
        self._bench, self._clock = bench, clock
        self.seconds = 0.0  # that an apply does not take
        self._seen = False
        self._missed = torch.zeros(len(bench.edits), dtype=torch.float64)
        self._wanted = torch.zeros(len(bench.edits), dtype=torch.float64)
        self._leverage = torch.zeros(len(bench.edits), dtype=torch.float64)

    def __call__(
        self, layer: TensorLayer, solution: Answer, chunks: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    ) -> None:
        if not isinstance(solution, Solution):
            return
        began, self._seen = self._clock(), True
        counts = torch.tensor([row.count for row in self._bench.rows(layer.name)])
        fact = torch.repeat_interleave(torch.arange(len(counts)), counts)
        missed, wanted = [], []
        for keys, value_diffs in chunks():
            u, d = keys.to(solution.param_shift), value_diffs.to(solution.param_shift)
            missed.append((u @ solution.param_shift - d).square().sum(1).cpu())
            wanted.append(d.square().sum(1).cpu())
        self._missed.index_add_(0, fact, torch.cat(missed))
        self._wanted.index_add_(0, fact, torch.cat(wanted))
        leverages = torch.cat(list(solution.leverages(keys for keys, _ in chunks()))).cpu()
        self._leverage.scatter_reduce_(0, fact, leverages, "amax")
        self.seconds += self._clock() - began

    def figures(self, facts: tuple[Fact, ...], known: list[bool]) -> list[FactFigures]:
        """One per fact, in the order of the facts."""
        place = {edit: i for i, edit in enumerate(self._bench.edits)}
        residual = (self._missed / self._wanted.clamp(min=1e-300)).sqrt()
        found = []
        for fact, knows in zip(facts, known, strict=True):
            i = place[fact.edit_digest]
            figures = (float(residual[i]), float(self._leverage[i])) if self._seen else (None, None)
            found.append(FactFigures(fact.prompt, fact.target, fact.edit_digest, knows, *figures))
        return found


def _predict(
    proposal: Proposal, bench: Workbench, solved: Solved, reckoned: Reckoned, took: dict[str, float]
) -> Forecast:
    """Phases that were tried take what they took; the others, which a plan does not do, what is reckoned."""
    objects, manifest, counts = bench.ledger.objects, proposal.model.manifest, reckoned.counts
    moved = [change for change in solved.changes if change.before != change.after]
    disk = sum(len(change.data) for change in moved if not objects.contains(change.after))
    disk += sum(rows.data.size for rows in bench.fresh) + sum(sizes_of(proposal.made))
    shards = {manifest.tensors[change.name].file for change in moved}
    sizes = [manifest.weights[name].size for name in shards]
    run = reckoned.rates.model
    answers, whole = run.seconds(counts.model, counts.answers), run.seconds(counts.model, counts.asked)
    tokenised = counts.texts / reckoned.rates.texts  # before, and not again
    asked = max(0.0, took["ask"] - tokenised)
    more = counts.old.answer / max(1, counts.asked.answer)
    kept = counts if bench.language_model.lower is not None else replace(counts, kept=0.0)
    before, after = (seconds / whole if whole else 1.0 for seconds in asking(kept, run))
    phases = {
        **reckoned.phases,
        "load": took["load"],
        "capture": took["capture"],
        "ask before": tokenised + asked * before + answers,
        "solve": took["solve"],
        "ask after": asked * (after + more) + answers,
    }
    return Forecast(
        seconds=sum(phases.values()),
        # This process has measured the machine and looked into the solve besides: its peak is too large, if anything.
        memory=min(resident_peak() or reckoned.peak, reckoned.peak),
        disk=disk,
        temporary=max(sizes, default=0),
        phases=phases,
    )
