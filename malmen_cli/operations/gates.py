"""Asking an edited model in memory what gates require of it: new facts, all old ones that stay, protected prompts.

Facts and prompts are taken in blocks, each asked in both states of the model where the base's answers count, so that
memory is flat in their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from malmen_cli.errors import UsageError
from malmen_cli.evaluation.examination import Examination
from malmen_cli.evaluation.gates import Gate, Gates, Group, Measure
from malmen_cli.evaluation.report import Report
from malmen_cli.evaluation.results import Kind, Result
from malmen_cli.evaluation.verdicts import Figure, Shortfall, Verdict, Verdicts
from malmen_cli.facts import Fact, Prompts, printable
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.ledger import store
from malmen_cli.operations.active import Proposal
from malmen_cli.operations.layers import all_layers
from malmen_cli.operations.solving import Solved
from malmen_cli.operations.tensors import base_tensor
from malmen_cli.operations.workbench import Workbench

BLOCK = 512
"""Facts, or protected prompts, that are asked at a time."""

PROTECTED_TOKENS = 32
"""Most tokens of a protected prompt's answer: what comes after them may change."""

_ASKING = "asking what the gates require"


def require_askable(bench: Workbench, gates: Gates) -> None:
    """Refuse protected prompts that the model cannot be asked, before it is edited.

    Raises:
        UsageError: one is longer than the model's positions, or has a token that the model does not know.
    """
    prompts, tokens = gates.protect, bench.tokenizing
    if prompts is None:
        return
    long = []
    for prompt in prompts.texts:
        ids = tokens.prompt_ids(prompt)
        tokens.require_known(ids, prompt)
        if tokens.limit is not None and len(ids) > tokens.limit:
            long.append(prompt)
    if long:
        raise UsageError(
            f"{len(long):,} of {len(prompts):,} protected prompts are longer than the model's {tokens.limit} positions,"
            f" the first: '{printable(long[0])}'",
            remedy="Leave them out: what cannot be asked cannot be protected.",
        )


def judge(bench: Workbench, proposal: Proposal, solved: Solved, gates: Gates) -> Verdicts:
    """Ask the edited model, whose weights `solved` are in force, all that the gates require. They are so afterwards."""
    groups = {group for gate in gates.gates for group in gate.groups}
    kept = sorted(proposal.kept())
    old = kept if "old" in groups else []
    figures: dict[tuple[Gate, Group], Figure] = {(g, group): Figure() for g in gates.gates for group in g.groups}
    total = (len(proposal.facts) if "new" in groups else 0) + len(old) + len(gates.protect or ())
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        bench.progress(_ASKING, done, total)

    if "new" in groups:
        facts = proposal.facts.facts
        for start in range(0, len(facts), BLOCK):
            block = facts[start : start + BLOCK]
            _ask_facts(bench, solved, block, _of_group(figures, "new"))
            advance(len(block))
    for start in range(0, len(old), BLOCK):
        with bench.ledger.read() as db:
            found = list(store.facts_with(db, old[start : start + BLOCK]).values())
        _ask_facts(bench, solved, found, _of_group(figures, "old"))
        advance(len(found))
    protected = [figure for (_, group), figure in figures.items() if group == "protected"]
    if gates.protect is not None and protected:
        _ask_protected(bench, solved, gates.protect, protected, proposal, advance)
    return Verdicts(
        [
            Verdict.of(gate, {group: figures[gate, group] for group in gate.groups}, old_facts=bool(kept))
            for gate in gates.gates
        ],
        None if gates.protect is None else _described(gates.protect),
    )


def _of_group(figures: dict[tuple[Gate, Group], Figure], group: Group) -> list[tuple[Measure, Figure]]:
    """What is asked of a group of facts, and where it is added up."""
    return [
        (gate.measure, figure) for (gate, of), figure in figures.items() if of == group and gate.measure is not None
    ]


def _ask_facts(
    bench: Workbench, solved: Solved, facts: Sequence[Fact], wanted: Sequence[tuple[Measure, Figure]]
) -> None:
    """Ask some facts all that is wanted of them: teacher-forced, and freely what is to be answered freely."""
    for generated in (False, True):
        asked = [(measure, figure) for measure, figure in wanted if measure.generated == generated]
        if asked:
            report = _examined(bench, solved, facts, [measure for measure, _ in asked], generated)
            for measure, figure in asked:
                figure.left_out += report.left_out[measure.kind]
                for result in report.results:
                    if result.kind == measure.kind:
                        figure.add(_found(facts, result, measure))


def _examined(
    bench: Workbench, solved: Solved, facts: Sequence[Fact], measures: Sequence[Measure], generated: bool
) -> Report:
    kinds = {measure.kind for measure in measures}
    some = [_with_prompts(fact, kinds) for fact in facts]
    examination = Examination(bench.language_model, some, generate=generated, batch_tokens=bench.batch_tokens)
    before = None
    if any(measure.unchanged for measure in measures):
        with at_base(bench, solved):
            before = examination.ask()
    after = examination.ask(base=before)
    return examination.report(before or after, after)


def _with_prompts(fact: Fact, kinds: set[Kind]) -> Fact:
    """The fact with those of its prompts that are asked."""
    rephrases = fact.rephrases if "rephrase" in kinds else ()
    return replace(fact, rephrases=rephrases, unrelated=fact.unrelated if "unrelated" in kinds else ())


def _found(facts: Sequence[Fact], result: Result, measure: Measure) -> Shortfall:
    before, after = result.before, result.after
    if measure.generated:
        value = float(bool(result.unchanged_generated if measure.unchanged else after.exact_match))
        was, said = before.generated or "", after.generated or ""
    else:
        value = result.unchanged if measure.unchanged else after.accuracy
        was, said = before.answer, after.answer
    wanted = was if measure.unchanged else result.target
    return Shortfall(result.kind, result.prompt, wanted, said, value, facts[result.fact].prompt)


def _ask_protected(
    bench: Workbench,
    solved: Solved,
    prompts: Prompts,
    figures: Sequence[Figure],
    proposal: Proposal,
    advance: Callable[[int], None],
) -> None:
    model = bench.language_model
    for start in range(0, len(prompts), BLOCK):
        block = prompts.texts[start : start + BLOCK]
        after = _answers(model, block, bench.batch_tokens)
        with at_base(bench, solved):
            before = _answers(model, block, bench.batch_tokens)
        for prompt, was, now in zip(block, before, after, strict=True):
            fact = prompt if prompt in proposal.active else None
            for figure in figures:
                figure.add(Shortfall(None, prompt, was, now, float(was == now), fact))
        advance(len(block))


def _answers(model: LanguageModel, prompts: Sequence[str], batch_tokens: int | None) -> list[str]:
    return [answer.text for answer in model.generate(prompts, PROTECTED_TOKENS, batch_tokens=batch_tokens)]


@contextmanager
def at_base(bench: Workbench, solved: Solved) -> Iterator[None]:
    """Within, the model has the base's weights; afterwards those of `solved` again."""
    with bench.ledger.read() as db:
        layers = {layer.name: layer for layer in [*all_layers(db, bench.model), *bench.layers]}
    for name in solved.weights:  # one at a time: each may be large
        bench.language_model.overlay({name: base_tensor(bench.ledger, bench.model, layers[name].tensor)})
    try:
        yield
    finally:
        bench.language_model.overlay(solved.weights)


def _described(prompts: Prompts) -> dict[str, str | int]:
    return {"source": prompts.source, "digest": prompts.digest, "prompts": len(prompts)}
