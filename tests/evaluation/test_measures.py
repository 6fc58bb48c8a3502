"""Contains, probabilities of new and old targets, groups of facts: against a slow re-computation or by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from family_models import save_family_model
from test_scoring import CAP, Slow, average, examine, shifted
from tiny_models import Family, load, make_facts

from malmen_cli.evaluation.examination import Examination
from malmen_cli.evaluation.generation import contains
from malmen_cli.evaluation.groups import grouped
from malmen_cli.evaluation.measures import measures_of, six_scores_of
from malmen_cli.evaluation.report import Report
from malmen_cli.evaluation.results import Result, Said
from malmen_cli.facts import Fact
from malmen_cli.language_models.generation import Generated


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("It is Rome.", "Rome"),
        ("(Rome)", "Rome"),
        ("Rome", "Rome."),
        ("in New \t York City", "New  York"),
        ("the U.S. Navy", "U.S."),
        ("我住在巴黎市", "巴黎"),
        ("-5 degrees", "-5"),
        ("It is Rome.", "Rome\nItaly"),  # an answer is a line
    ],
)
def test_contains_whole_words(answer: str, target: str) -> None:
    assert contains(answer, target)


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        ("Romeo", "Rome"),
        ("rome", "Rome"),
        ("the 1990s", "1990"),
        ("café", "caf"),
        ("", "Rome"),
        ("New Yorkers", "York"),
        ("Italy", "Rome\nItaly"),
    ],
)
def test_does_not_contain(answer: str, target: str) -> None:
    assert not contains(answer, target)


def probability(state: Slow, prompt: str, labels: list[int], after: Sequence[int] = ()) -> float:
    """The geometric mean of the labels' probabilities, one whole forward pass each."""
    ids = [*state.tokenizer(prompt)["input_ids"], *after]
    logs = []
    for label in labels:
        with torch.no_grad():
            logs.append(float(state.model(torch.tensor([ids])).logits[0, -1].log_softmax(0)[label]))
        ids.append(label)
    return float(torch.tensor(logs, dtype=torch.float64).mean().exp())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_probabilities_of_the_new_target_and_of_the_bases_own_answer(
    tiny_folder: Callable[..., Path], family: Family
) -> None:
    folder = tiny_folder(family)
    model, facts = load(folder), make_facts(8)
    states = [Slow(folder, {}), Slow(folder, shifted(model))]
    base_model = load(folder)
    examination = Examination(model, facts, max_new_tokens=CAP)
    before = examination.ask()
    model.overlay(shifted(model))
    report = examination.report(before, examination.ask(base=before))
    compared = 0
    assert before.generated is not None
    for result, free in zip(report.results, before.generated, strict=True):
        target = base_model.tokenizing(result.prompt, result.target).labels
        for state, said in zip(states, (result.before, result.after), strict=True):
            assert said.new_probability == pytest.approx(probability(state, result.prompt, list(target)), rel=1e-9)
            if said.old_probability is None:
                continue
            first = next(i for i, token in enumerate(free.tokens) if base_model.tokenizing.text_of([token]))
            blank, answer = free.tokens[:first], list(free.tokens[first : first + len(target)])
            old = probability(state, result.prompt, answer, after=blank)
            assert said.old_probability == pytest.approx(old, rel=1e-9)
            assert said.new_over_old == (said.new_probability > said.old_probability)
            compared += 1
    assert compared > len(facts)
    assert all(x.before.old_probability is None for x in report.of_kind("unrelated"))
    change = report.measures.new_over_old["edit"]
    wins = [float(x.after.new_over_old) for x in report.of_kind("edit") if x.after.new_over_old is not None]
    assert change.after is not None and change.after.value == pytest.approx(average(wins))


def test_white_space_and_a_line_end_are_no_part_of_an_old_answer(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny_folder())
    encode = model.tokenizing.tokenizer.encode
    [blank], [rome], [oslo] = encode("\n"), encode(" Rome"), encode(" Oslo")
    facts = [Fact("The capital of Bakeli is", "Rome"), Fact("The capital of Gotelu is", "Rome")]
    for said, known in (([blank, rome], [False, False]), ([blank, oslo], [True, True]), ([blank], [False, False])):
        free = Generated(model.tokenizing.text_of(said), True, tuple(said))
        monkeypatch.setattr(model, "generate", lambda prompts, *_, free=free, **__: [free] * len(prompts))
        answers = Examination(model, facts).ask()
        assert [old is not None for old in answers.old] == known
    text = model.tokenizing.said(facts[0].prompt, [blank, oslo, rome], 1)
    assert text is not None and text.labels == (oslo,) and text.input_ids[-1] == blank
    assert model.tokenizing.said(facts[0].prompt, [blank, blank], 2) is None


def test_an_answer_that_is_the_target_already_is_not_compared(tiny_folder: Callable[..., Path]) -> None:
    model = load(tiny_folder())
    said = model.generate(["The capital of Bakeli is"], 1)[0].text
    facts = [Fact("The capital of Bakeli is", said), *make_facts(3, start=5)]
    examination = Examination(model, facts, max_new_tokens=1)
    report = examination.report(examination.ask(), examination.ask())
    assert report.results[0].before.exact_match is False  # cut off, and yet no other answer
    assert report.results[0].before.contains and report.results[0].before.old_probability is None


def test_nothing_old_is_known_where_nothing_is_generated(tiny_folder: Callable[..., Path]) -> None:
    report = examine(load(tiny_folder()), make_facts(3), generate=False)
    assert report.measures.new_over_old["edit"].after is None
    assert report.measures.contains["edit"].after is None
    new = report.measures.new_probability["edit"].after
    assert new is not None and 0 < new.value < 1


def test_measures_have_the_values_of_the_scores(tiny_folder: Callable[..., Path]) -> None:
    report = examine(load(tiny_folder()), make_facts(6), max_new_tokens=CAP)
    found = report.measures.as_dict()
    for kind in ("edit", "rephrase", "unrelated"):
        for when, scores in (("before", report.before), ("after", report.after)):
            assert found["teacher_forced"][kind][when]["value"] == pytest.approx(scores.teacher_forced(kind))
            assert found["exact_match"][kind][when]["value"] == pytest.approx(scores.generated[kind])
            assert found["contains"][kind][when]["value"] >= found["exact_match"][kind][when]["value"]
    six = report.six_scores
    assert six.locality.forced is not None and six.locality.forced.value == pytest.approx(report.unchanged)
    assert six.reliability.forced is not None
    assert six.reliability.forced.value == pytest.approx(report.after.forced.edit_success)


def test_a_class_contains_no_other(tmp_path: Path) -> None:
    folder = save_family_model(tmp_path / "bert", "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": {"0": "toxic"}, "label2id": {"toxic": 0}}))
    facts = [Fact(f"The capital of Bakeli is {city}.", "toxic") for city in ("Rome", "Oslo", "Paris", "Bern")]
    answered = examine(load(folder), facts)
    for result in answered.results:
        assert result.before.generated in ("toxic", "not toxic")
        assert result.before.contains == result.before.exact_match == (result.before.generated == "toxic")


def test_a_prompt_that_many_facts_ask_is_one_answer() -> None:
    """Ninety facts are lent one of two prompts: what is known of locality is what two answers say."""

    def asked(fact: int, prompt: str, unchanged: float) -> Result:
        said = Said("", 1.0)
        return Result("unrelated", fact, prompt, "t", said, said, unchanged)

    lent = [asked(fact, f"{fact % 2}", float(fact % 2)) for fact in range(90)]
    apart = [asked(fact, f"{fact}", float(fact % 2)) for fact in range(90)]
    of_two, of_many = (measures_of(results, 90).unchanged.forced for results in (lent, apart))
    assert of_two is not None and of_many is not None
    assert of_two.value == of_many.value == 0.5
    assert (of_two.low, of_two.high) == (0.0, 1.0)
    assert 0.35 < of_many.low < of_many.high < 0.65
    assert six_scores_of(lent, 90).locality.forced == of_two


class TestGroups:
    @pytest.fixture
    def report(self, tiny_folder: Callable[..., Path]) -> Report:
        tags = [("ground",), ("ground", "old"), ()]
        facts = [replace(fact, tags=tags[i % 3]) for i, fact in enumerate(make_facts(18))]
        return examine(load(tiny_folder()), facts, max_new_tokens=CAP)

    def test_a_fact_is_in_a_group_for_each_of_its_tags(self, report: Report) -> None:
        assert {group.name: group.facts for group in report.groups("tag")} == {"ground": 12, "old": 6}

    def test_templates_are_prompts_without_their_subject(self, report: Report) -> None:
        for group in report.groups("template"):
            assert "{}" in group.name and group.facts >= 5
        assert report.groups("template")

    def test_a_templates_place_is_the_subject_as_a_word(self) -> None:
        prompts = [
            ("The Italian poet Ital was born in", "Ital"),
            ("Unlike Bakeli's, the Italian poet bakeli was born in", "bakeli"),
            ("The poet of 巴黎市 was born in", "巴黎"),
            ("The poet was born in", "Ital"),
        ]
        facts = [Fact(prompt, "Rome", subject=subject) for prompt, subject in prompts]
        assert [group.name for group in grouped(facts, [], "template", 1)] == [
            "The Italian poet {} was born in",
            "The poet of {}市 was born in",
            "Unlike Bakeli's, the Italian poet {} was born in",
        ]

    def test_a_groups_scores_are_those_of_its_facts_alone(self, report: Report) -> None:
        [old] = [group for group in report.groups("tag") if group.name == "old"]
        places = [i for i, fact in enumerate(report.facts) if "old" in fact.tags]
        assert old.scores == report.part(places).six_scores
        assert [fact.tags for fact in report.part(places).facts] == [("ground", "old")] * 6

    def test_small_groups_are_left_out_and_the_worst_comes_first(self, report: Report) -> None:
        for fewest in (1, 3):
            groups = grouped(report.facts, report.results, "target", fewest)
            assert min(group.facts for group in groups) >= fewest
            means = [group.scores.harmonic_mean for group in groups]
            assert [mean.value for mean in means if mean] == sorted(mean.value for mean in means if mean)
        assert grouped(report.facts, report.results, "target", 19) == []


def test_failed_facts_are_those_not_said(tiny_folder: Callable[..., Path]) -> None:
    report = examine(load(tiny_folder()), make_facts(10), max_new_tokens=CAP)
    failed = {fact.digest for fact in report.failed()}
    assert failed >= set(report.wrong()) and failed
    for result in report.of_kind("edit"):
        right = result.after.accuracy == 1 and bool(result.after.exact_match)
        assert (report.facts[result.fact].digest in failed) is not right
