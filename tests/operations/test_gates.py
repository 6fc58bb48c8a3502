"""What gates are asked: every figure against a re-computation on saved folders; what fails writes nothing at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from safetensors_folders import file_digests
from tiny_models import POSITIONS, Family, World, everything, load, make_fact, make_facts, make_world

from malmen_cli.errors import ExitCode, RefusedByGate, UsageError
from malmen_cli.evaluation.gates import Gates, parse_gates
from malmen_cli.evaluation.verdicts import Figure, Verdicts
from malmen_cli.facts import Fact, FactSet, Prompts
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.ledger import store
from malmen_cli.operations import gates as gates_module
from malmen_cli.operations.apply import Applied, ApplyOptions, apply_facts
from malmen_cli.operations.gates import PROTECTED_TOKENS

OLD, NEW = make_facts(4), [make_fact(1, "Lima"), *make_facts(4, start=4)]
STAYING = [fact for fact in OLD if fact.prompt != NEW[0].prompt]  # the second one is superseded
PROMPTS = Prompts(("Who lives there speaks", "A stone, a bridge, two", NEW[1].prompt), "prompts.txt")
ANY = (
    "ES>=0,GS>=0,LS>=0,UNCHANGED>=0,ES_GENERATED>=0,GS_GENERATED>=0,LS_GENERATED>=0,UNCHANGED_GENERATED>=0,PROTECTED>=0"
)


def gates(text: str, prompts: Prompts | None = PROMPTS) -> Gates:
    found = Gates.of(parse_gates(text), prompts)
    assert found is not None
    return found


def apply(world: World, options: ApplyOptions, facts: Sequence[Fact] = tuple(NEW)) -> Applied:
    with world.ledger() as (ledger, model):
        return apply_facts(ledger, model, FactSet(tuple(facts), "new"), options, "malmen apply")


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """A model that was edited already; its base lies in the folder `base`."""
    family: Family = getattr(request, "param", "gpt2")
    world = make_world(tmp_path, family, dtype="bfloat16" if family == "llama" else "float32")
    shutil.copytree(world.checkpoint, tmp_path / "base")
    world.apply(*OLD)
    return world


def figures(verdicts: Verdicts | None) -> dict[str, dict[str, Figure]]:
    assert verdicts is not None
    return {x.gate.name: {str(group): figure for group, figure in x.figures.items()} for x in verdicts.verdicts}


@dataclass
class Slow:
    """Two saved states of a model, asked one prompt at a time."""

    base: LanguageModel
    edited: LanguageModel

    def share(self, facts: Sequence[Fact], prompts: Callable[[Fact], Sequence[tuple[str, str]]], name: str) -> float:
        values = [self._value(prompt, target, name) for fact in facts for prompt, target in prompts(fact)]
        return sum(values) / len(values)

    def _value(self, prompt: str, target: str, name: str) -> float:
        if name.endswith("_GENERATED"):
            tokens = self.base.tokenizing(prompt, target)
            [now], [was] = (model.generate([prompt], tokens.supervised + 16) for model in (self.edited, self.base))
            if name.startswith("UNCHANGED"):
                return float(now.text == was.text)
            return float(now.stopped and now.text.removesuffix(".").strip() == target)
        tokens = self.base.tokenizing(prompt, target)
        [now], [was] = self.edited.predictions([tokens]), self.base.predictions([tokens])
        wanted = was if name == "UNCHANGED" else tokens.labels
        return sum(a == b for a, b in zip(now, wanted, strict=True)) / tokens.supervised


@pytest.mark.parametrize("world", ["gpt2", "llama"], indirect=True)
def test_every_figure_is_that_of_the_saved_folders(world: World, tmp_path: Path) -> None:
    before = everything(world)
    applied = apply(world, ApplyOptions(gates=gates(ANY), output=tmp_path / "edited", check_old=0))
    found = figures(applied.verdicts)
    slow = Slow(load(tmp_path / "base", float64=False), load(tmp_path / "edited", float64=False))
    prompts: dict[str, Callable[[Fact], list[tuple[str, str]]]] = {
        "ES": lambda fact: [(fact.prompt, fact.target)],
        "GS": lambda fact: [(prompt, fact.target) for prompt in fact.rephrases],
        "LS": lambda fact: [(other.prompt, other.target) for other in fact.unrelated],
        "UNCHANGED": lambda fact: [(other.prompt, other.target) for other in fact.unrelated],
    }
    told = []
    for name in (word.split(">")[0] for word in ANY.split(",")[:-1]):
        for group, facts in (("new", NEW), ("old", STAYING)):
            expected = slow.share(facts, prompts[name.removesuffix("_GENERATED")], name)
            assert found[name][group].mean == pytest.approx(expected, abs=1e-12), (name, group)
            told.append(expected)
    assert len({round(value, 6) for value in told}) > 2  # else nothing was told apart
    [base, edited] = (model.generate(list(PROMPTS.texts), PROTECTED_TOKENS) for model in (slow.base, slow.edited))
    same = sum(a.text == b.text for a, b in zip(base, edited, strict=True)) / len(PROMPTS)
    assert found["PROTECTED"]["protected"].mean == same
    assert everything(world) == before


def test_a_gate_at_the_figure_passes_and_just_above_it_is_refused(world: World) -> None:
    found = figures(apply(world, ApplyOptions(gates=gates("UNCHANGED>=0", None), dry_run=True)).verdicts)["UNCHANGED"]
    lowest = min(figure.mean or 0 for figure in found.values())
    before = everything(world)
    with pytest.raises(RefusedByGate, match="UNCHANGED") as refused:
        apply(world, ApplyOptions(gates=gates(f"UNCHANGED>={lowest + 1e-6:.7f}", None)))
    assert refused.value.exit_code == ExitCode.REFUSED_BY_GATE and refused.value.remedy
    assert everything(world) == before
    outcome = refused.value.outcome
    assert outcome.entry is None and outcome.check is not None and len(outcome.verdicts.failed) == 1
    applied = apply(world, ApplyOptions(gates=gates(f"UNCHANGED>={lowest - 1e-6:.7f}", None)))
    assert applied.entry is not None and applied.verdicts is not None and not applied.verdicts.failed
    with world.ledger() as (ledger, model), ledger.read() as db:
        details = store.head(db, model.id).details
    assert details["gates"] == applied.verdicts.as_dict(worst=False)


def test_the_refused_apply_and_one_without_gates_make_the_same_checkpoint(world: World) -> None:
    """A refusal leaves nothing that the next apply would see, and asking for gates changes no weight."""
    with pytest.raises(RefusedByGate):
        apply(world, ApplyOptions(gates=gates("PROTECTED>=1")))
    apply(world, ApplyOptions(gates=gates("UNCHANGED>=0,PROTECTED>=0")))
    gated = file_digests(world.checkpoint)
    world.revert("HEAD")
    apply(world, ApplyOptions())
    weights = [name for name in gated if name.endswith(".safetensors")]
    assert weights and all(file_digests(world.checkpoint)[name] == gated[name] for name in weights)


def test_all_old_facts_that_stay_are_asked_and_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ApplyOptions(gates=gates("ES>=0,OLD_UNCHANGED_GENERATED>=0,PROTECTED>=0"), dry_run=True, check_old=1)
    applied = apply(world, options)
    found = figures(applied.verdicts)
    assert applied.check is not None and applied.check.checked_old == 1
    assert found["ES"]["old"].asked == len(STAYING) and found["ES"]["new"].asked == len(NEW)
    assert {short.prompt for short in found["ES"]["old"].worst} <= {fact.prompt for fact in STAYING}
    monkeypatch.setattr(gates_module, "BLOCK", 2)
    assert figures(apply(world, options).verdicts) == found


def test_unchanged_is_of_the_base_and_not_of_what_earlier_applies_left(world: World) -> None:
    """With nothing new to say the model differs from its base by the old facts alone, and the gates see that."""
    changed = figures(apply(world, ApplyOptions(gates=gates("PROTECTED>=0"), dry_run=True)).verdicts)
    assert changed["PROTECTED"]["protected"].mean != 1
    worst = changed["PROTECTED"]["protected"].worst
    base = load(world.checkpoint.parent / "base", float64=False)
    for short in worst:
        assert [short.wanted] == [answer.text for answer in base.generate([short.prompt], PROTECTED_TOKENS)]
        assert short.fact == (short.prompt if short.prompt == NEW[1].prompt else None)


def test_what_cannot_be_asked_is_refused(world: World) -> None:
    bare = [replace(fact, rephrases=()) for fact in NEW]
    with pytest.raises(RefusedByGate, match="GS>=0") as refused:
        apply(world, ApplyOptions(gates=gates("GS>=0,ES>=0", None), dry_run=True), bare)
    [verdict] = refused.value.outcome.verdicts.failed
    assert "cannot be asked" in verdict.words("new")
    assert apply(world, ApplyOptions(gates=gates("OLD_GS>=0", None), dry_run=True), bare).verdicts is not None


def test_a_protected_prompt_too_long_for_the_model_is_refused_first(world: World) -> None:
    long = Prompts(("A stone", "sea " * POSITIONS), "prompts.txt")
    before = everything(world)
    with pytest.raises(UsageError, match=f"1 of 2 protected prompts are longer than the model's {POSITIONS}"):
        apply(world, ApplyOptions(gates=gates("PROTECTED>=0", long)))
    assert everything(world) == before


def test_where_nothing_changes_no_gate_is_asked(world: World) -> None:
    applied = apply(world, ApplyOptions(gates=gates("ES>=1")), OLD)
    assert applied.entry is None and applied.verdicts is None
