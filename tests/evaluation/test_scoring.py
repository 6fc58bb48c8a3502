"""ES, GS, LS, exact match and what is unchanged, against a slow re-computation that shares nothing but transformers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import POSITIONS, Family, load, make_fact, make_facts

from malmen_cli.evaluation.examination import Examination
from malmen_cli.evaluation.report import Report
from malmen_cli.facts import Fact, Unrelated
from malmen_cli.language_models.language_model import LanguageModel

CAP = 5
FAMILIES: list[Family] = ["gpt2", "llama"]


class Slow:
    """One state of a model, asked one token at a time by whole forward passes in float64."""

    def __init__(self, folder: Path, weights: dict[str, torch.Tensor], ends: Sequence[int] = ()) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
        for name, weight in weights.items():
            self.model.get_submodule(name).weight.data.copy_(weight)
        self.ends = [self.tokenizer.eos_token_id, *ends]
        self.free = cache(self._free)

    def next(self, ids: Sequence[int]) -> int:
        with torch.no_grad():
            return int(self.model(torch.tensor([list(ids)])).logits[0, -1].argmax())

    def forced(self, prompt: str, target: str) -> tuple[list[int], list[int]]:
        """The target's tokens, and what is predicted in the place of each."""
        whole = self.tokenizer(f"{prompt} {target}")["input_ids"]
        start = len(self.tokenizer(prompt)["input_ids"])
        return whole[start:], [self.next(whole[:place]) for place in range(start, len(whole))]

    def tokens(self, prompt: str) -> list[int]:
        ids = list(self.tokenizer(prompt)["input_ids"])
        read = len(ids)
        while len(ids) < read + CAP and ids[-1] not in self.ends:
            ids.append(self.next(ids))
        return ids[read:]

    def _free(self, prompt: str) -> tuple[str, bool]:
        new = self.tokens(prompt)
        ended = new[-1] in self.ends
        return self.tokenizer.decode(new[:-1] if ended else new, skip_special_tokens=True).strip(), ended


def ending(model: LanguageModel, folder: Path) -> int:
    """Make a token that the model says often, but seldom first, one of its ends of text: random models rarely stop."""
    slow = Slow(folder, {})
    said = Counter(token for fact in make_facts(20) for token in slow.tokens(fact.prompt)[1:])
    [(token, _)] = said.most_common(1)
    model.model.generation_config.eos_token_id = [token, model.tokenizing.tokenizer.eos_token_id]
    return token


def average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def accuracy(states: Sequence[Slow], at: int, prompts: Sequence[tuple[str, str]]) -> float:
    shares = []
    for prompt, target in prompts:
        wanted, said = states[at].forced(prompt, target)
        shares.append(average([a == b for a, b in zip(wanted, said, strict=True)]))
    return average(shares)


def matches(state: Slow, prompts: Sequence[tuple[str, str]]) -> float:
    said = [(state.free(prompt), target) for prompt, target in prompts]
    return average([ended and text.strip().removesuffix(".") == target for (text, ended), target in said])


def prompts_by_kind(facts: Sequence[Fact]) -> dict[str, list[tuple[str, str]]]:
    return {
        "edit": [(fact.prompt, fact.target) for fact in facts],
        "rephrase": [(prompt, fact.target) for fact in facts for prompt in fact.rephrases],
        "unrelated": [(other.prompt, other.target) for fact in facts for other in fact.unrelated],
    }


def facts_that_are_partly_known(model: LanguageModel) -> list[Fact]:
    """Facts of which the model answers some as they want: what it says by itself is the target of every other one."""

    def said(prompt: str) -> str:
        answer = model.generate([prompt], CAP)[0]
        return answer.text if answer.stopped and answer.text.isascii() else ""

    facts = []
    for index in range(20):
        plain = make_fact(index)
        rephrases = (*plain.rephrases, f"In {plain.subject} one rules from")
        other = make_fact(index + 100).prompt
        unrelated = (*plain.unrelated, Unrelated(other, said(other)))
        target = said(plain.prompt) if index % 2 else ""
        facts.append(
            Fact(
                plain.prompt, target or plain.target, plain.subject, rephrases, tuple(u for u in unrelated if u.target)
            )
        )
    return facts


def shifted(model: LanguageModel) -> dict[str, torch.Tensor]:
    """Other weights for the edited layers, by module path, in the checkpoint's orientation."""
    torch.manual_seed(1)
    return {layer.name: layer.module.weight + 0.03 * torch.randn_like(layer.module.weight) for layer in model.layers}


def examine(model: LanguageModel, facts: Sequence[Fact], **options: Any) -> Report:
    examination = Examination(model, facts, **options)
    before = examination.ask()
    model.overlay(shifted(model))
    return examination.report(before, examination.ask())


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_plain_transformers_calls(tiny_folder: Callable[..., Path], family: Family) -> None:
    folder = tiny_folder(family)
    model = load(folder)
    ends = [ending(model, folder)]
    facts = facts_that_are_partly_known(model)
    states = [Slow(folder, {}, ends), Slow(folder, shifted(model), ends)]
    report = examine(model, facts, max_new_tokens=CAP, batch_tokens=200)

    asked = prompts_by_kind(facts)
    assert report.asked == {kind: len(prompts) for kind, prompts in asked.items()}
    for at, scores in enumerate((report.before, report.after)):
        for kind, prompts in asked.items():
            assert scores.teacher_forced(kind) == pytest.approx(accuracy(states, at, prompts), abs=1e-12)
            assert scores.generated[kind] == pytest.approx(matches(states[at], prompts), abs=1e-12)
            assert scores.cut_off[kind] == sum(not states[at].free(prompt)[1] for prompt, _ in prompts)
    same, texts = [], []
    for prompt, target in asked["unrelated"]:
        was, now = (state.forced(prompt, target)[1] for state in states)
        same.append(average([a == b for a, b in zip(was, now, strict=True)]))
        texts.append(states[0].free(prompt)[0] == states[1].free(prompt)[0])
    assert report.unchanged == pytest.approx(average(same), abs=1e-12)
    assert report.unchanged_generated == pytest.approx(average(texts), abs=1e-12)
    # A control: all of this has something to tell apart.
    assert 0 < average(same) < 1 and 0 < average(texts) < 1
    assert report.before.generated["edit"] and report.before.generated["unrelated"]
    assert report.before.as_dict() != report.after.as_dict()


def test_the_same_weights_are_unchanged(tiny_folder: Callable[..., Path]) -> None:
    model = load(tiny_folder())
    examination = Examination(model, make_facts(6), max_new_tokens=CAP)
    report = examination.report(examination.ask(), examination.ask())
    assert (report.unchanged, report.unchanged_generated) == (1, 1)
    assert report.before.as_dict() == report.after.as_dict()


def test_results_say_what_was_answered(tiny_folder: Callable[..., Path]) -> None:
    model = load(tiny_folder("llama"))
    [fact] = make_facts(1)
    said = model.generate([fact.prompt], CAP)[0]
    [told] = examine(model, [fact], max_new_tokens=CAP).as_dict([7])["facts"]
    assert (told["number"], told["digest"], told["prompt"]) == (7, fact.digest, fact.prompt)
    edit = told["edit"]
    assert (edit["before"]["generated"], edit["before"]["stopped"]) == (said.text, said.stopped)
    tokens = model.tokenizing(fact.prompt, fact.target)
    [predicted] = model.predictions([tokens])
    assert edit["after"]["answer"] == model.tokenizing.tokenizer.decode(predicted).strip()
    assert [x["prompt"] for x in told["rephrases"]] == list(fact.rephrases)
    assert [x["target"] for x in told["unrelated"]] == [other.target for other in fact.unrelated]


def test_facts_without_rephrases_and_unrelated_prompts_are_scored_by_their_edit_alone(
    tiny_folder: Callable[..., Path],
) -> None:
    report = examine(load(tiny_folder()), [Fact("The capital of Bakeli is", "Rome")], max_new_tokens=CAP)
    assert report.after.forced.edit_success is not None
    assert report.after.as_dict()["GS"] is report.after.as_dict()["LS"] is None
    assert report.after.generated["rephrase"] is report.unchanged is report.unchanged_generated is None
    assert report.as_dict([1])["facts"][0]["rephrases"] == []


def test_prompts_without_room_are_left_out_and_counted(tiny_folder: Callable[..., Path]) -> None:
    long = "of the " * POSITIONS + "land"
    facts = [make_fact(0), Fact("The capital of Monura is", "Rome", rephrases=(long, "Monura's capital is"))]
    report = examine(load(tiny_folder()), facts, max_new_tokens=CAP)
    assert report.left_out == {"edit": 0, "rephrase": 1, "unrelated": 0}
    assert report.asked == {"edit": 2, "rephrase": 2, "unrelated": 1}


def test_nothing_is_generated_unless_asked_for(tiny_folder: Callable[..., Path]) -> None:
    report = examine(load(tiny_folder()), make_facts(3), generate=False)
    assert report.unchanged is not None and report.unchanged_generated is None
    assert set(report.after.generated.values()) == set(report.after.cut_off.values()) == {None}
    assert report.results[0].after.exact_match is None
    whole = examine(load(tiny_folder()), make_facts(3), max_new_tokens=CAP)
    assert whole.after.forced == report.after.forced


def test_the_default_cap_leaves_room_beyond_the_target(tiny_folder: Callable[..., Path]) -> None:
    model = load(tiny_folder())
    facts = [make_fact(0), make_fact(4)]  # targets of one token and of several
    examination = Examination(model, facts)
    generated = examination.ask().generated
    assert generated is not None
    for question, found in zip(examination.questions, generated, strict=True):
        assert found == model.generate([question.prompt], question.tokens.supervised + 16)[0]
