"""Rows are split by subject, and each fact's prompts become tokens or are counted as dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_models import POSITIONS, make_fact, make_facts, tiny_tokenizer

from malmen_cli.errors import UsageError
from malmen_cli.facts import Fact
from malmen_cli.language_models.tokenizing import CausalTokenizing
from malmen_cli.training.rows import Split, split_rows

FACTS = make_facts(12)
TOKENIZING = CausalTokenizing(tiny_tokenizer(), POSITIONS)


def split(facts: list[Fact], share: float = 0.25, largest: int = 400, seed: int = 0) -> Split:
    return split_rows(facts, TOKENIZING, share=share, largest=largest, seed=seed)


def prompts(rows: list) -> set[tuple[int, ...]]:
    return {row.edit.input_ids for row in rows}


@pytest.mark.parametrize("seed", range(5))
def test_no_subject_is_on_both_sides(seed: int) -> None:
    # Three facts a subject, told by the prompt they begin with.
    facts = [
        replace(make_fact(i), prompt=f"{start} {make_fact(i).subject} is")
        for i in range(10)
        for start in ("The capital of", "The language of", "The river of")
    ]
    by_subject = {
        f.subject: {TOKENIZING(g.prompt, g.target).input_ids for g in facts if g.subject == f.subject} for f in facts
    }
    found = split(facts, seed=seed)
    train, held_out = prompts(found.train), prompts(found.held_out)
    assert len(found.train) + len(found.held_out) == len(facts)
    assert all(ids <= train or ids <= held_out for ids in by_subject.values())
    assert len(found.held_out) == 9  # a quarter of 30, in whole subjects
    assert prompts(split(facts, seed=seed + 1).held_out) != held_out


@pytest.mark.parametrize("seed", range(5))
def test_who_says_the_same_is_on_one_side(seed: int) -> None:
    """Subjects that differ in case and blanks alone; without any, a prompt that is another's rephrase."""
    twins = [replace(fact, subject=f" {str(fact.subject).upper()}  ", prompt=f"{i} is") for i, fact in enumerate(FACTS)]
    turned = [replace(fact, subject=None, prompt=fact.rephrases[0].lower(), rephrases=()) for fact in FACTS]
    for others in (twins, turned):
        found = split([*FACTS, *others], seed=seed)
        assert (len(found.train), len(found.held_out)) == (18, 6)
        held_out = prompts(found.held_out)
        for one, other in zip(FACTS, others, strict=True):
            sides = [TOKENIZING(fact.prompt, fact.target).input_ids in held_out for fact in (one, other)]
            assert sides[0] == sides[1]


def test_facts_without_a_subject_count_by_prompt() -> None:
    found = split([replace(fact, subject=None) for fact in make_facts(8)])
    assert (len(found.train), len(found.held_out)) == (6, 2)


def test_at_least_one_and_at_most_so_many_rows_are_held_out() -> None:
    assert len(split(make_facts(12), share=0.001).held_out) == 1
    assert len(split(make_facts(12), share=0.9, largest=3).held_out) == 3
    assert len(split(make_facts(12), share=0.99).train) == 2
    assert len(split(make_facts(3), share=0.01).train) == 2


@pytest.mark.parametrize("seed", range(8))
def test_of_a_large_and_a_small_subject_the_large_one_is_trained_on(seed: int) -> None:
    facts = [replace(fact, subject=subject) for fact, subject in zip(make_facts(3), "aab", strict=True)]
    assert len(split(facts, seed=seed).train) == 2


def test_one_fact_to_train_on_is_too_few() -> None:
    with pytest.raises(UsageError, match="needs two facts to train on"):
        split(make_facts(2))


@pytest.mark.parametrize("seed", range(8))
def test_a_subject_of_most_facts_is_trained_on(seed: int) -> None:
    facts = [replace(fact, subject="the same") for fact in make_facts(60)] + make_facts(12, start=60)
    found = split(facts, share=0.05, seed=seed)
    assert (len(found.train), len(found.held_out)) == (68, 4)


def test_of_large_subjects_alone_the_smallest_is_held_out() -> None:
    facts = [replace(fact, subject=f"subject {i % 5 // 2}") for i, fact in enumerate(make_facts(50))]
    assert len(split(facts, share=0.02).held_out) == 10


@pytest.mark.parametrize("seed", range(8))
def test_what_does_not_fit_is_not_held_out(seed: int) -> None:
    facts = [*make_facts(6), *(replace(make_fact(i), prompt="a very long word " * (30 + i)) for i in range(6, 12))]
    found = split(facts, share=0.1, seed=seed)
    assert (len(found.train), len(found.held_out), len(found.left_out), found.dropped) == (5, 1, 6, 0)
    with pytest.raises(UsageError, match="two subjects, and 6 of 7 do not fit the model"):
        split(facts[5:], seed=seed)
    with pytest.raises(UsageError, match="no fact fits the model"):
        split(facts[6:], seed=seed)


def test_one_subject_cannot_be_split() -> None:
    with pytest.raises(UsageError, match="two subjects"):
        split([replace(fact, subject="the same") for fact in make_facts(4)])


def test_a_fact_without_rephrases_is_its_own_equivalent_and_what_does_not_fit_is_counted() -> None:
    long = "a very long word " * 30
    facts = [
        *make_facts(6),
        replace(make_fact(6), rephrases=()),
        replace(make_fact(7), rephrases=(long, make_fact(7).rephrases[0])),
        replace(make_fact(8), prompt=long),
    ]
    found = split(facts)
    assert (found.dropped, list(found.left_out)) == (1, facts[8:])
    rows = {row.edit.input_ids: row for row in found.train + found.held_out}
    assert len(rows) == 8
    bare = rows[TOKENIZING(facts[6].prompt, facts[6].target).input_ids]
    assert bare.equivalent == (bare.edit,)
    assert all(len(row.equivalent) == len(row.unrelated) == 1 for row in rows.values())


def test_lent_prompts_are_known_as_such() -> None:
    own = split(make_facts(8))
    assert not any(row.lent for row in own.train + own.held_out)
    bare = split([replace(fact, unrelated=()) for fact in make_facts(8)])
    assert all(row.lent and len(row.unrelated) == 1 for row in bare.train + bare.held_out)


@pytest.mark.parametrize("seed", range(5))
def test_no_rephrase_of_a_fact_beside_it_is_lent(seed: int) -> None:
    facts = [replace(fact, unrelated=()) for fact in make_facts(8)]
    # Half of them ask what the others' rephrases ask.
    facts[4:] = [replace(fact, prompt=other.rephrases[0]) for fact, other in zip(facts[4:], facts, strict=False)]
    asked = {fact.prompt: TOKENIZING(fact.prompt, fact.target) for fact in facts}
    found = split(facts, seed=seed)
    for rows in (found.train, found.held_out):
        together = [fact for fact in facts if asked[fact.prompt] in [row.edit for row in rows]]
        taken = {asked[prompt] for fact in together for prompt in fact.rephrases if prompt in asked}
        assert not taken & {text for row in rows for text in row.unrelated}
    assert any(row.lent for row in found.train)
