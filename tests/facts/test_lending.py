"""Facts without unrelated prompts are lent those of others."""

from __future__ import annotations

from dataclasses import replace

from tiny_models import make_fact, make_facts

from malmen_cli.facts.fact import Unrelated
from malmen_cli.facts.lending import lend_unrelated


def bare(count: int, start: int = 0) -> list:
    return [replace(fact, unrelated=()) for fact in make_facts(count, start)]


def test_each_gets_one_of_the_lenders_and_its_target() -> None:
    lenders = make_facts(20, start=100)
    known = {Unrelated(lender.prompt, lender.target) for lender in lenders}
    lent = lend_unrelated(bare(10), lenders, seed=0)
    assert [fact.prompt for fact in lent] == [fact.prompt for fact in make_facts(10)]
    assert all(len(fact.unrelated) == 1 and set(fact.unrelated) <= known for fact in lent)
    assert len({fact.unrelated for fact in lent}) > 3


def test_those_that_have_some_keep_them() -> None:
    assert lend_unrelated(make_facts(5), make_facts(5, start=9), seed=0) == make_facts(5)


def test_a_fact_is_lent_the_same_whatever_stands_beside_it() -> None:
    lenders = make_facts(20, start=100)
    [alone] = lend_unrelated(bare(1, start=3), lenders, seed=1)
    assert lend_unrelated(bare(10), lenders, seed=1)[3] == alone
    assert lend_unrelated(bare(10), lenders, seed=2) != lend_unrelated(bare(10), lenders, seed=1)


def test_nobody_borrows_from_itself_or_of_its_own_subject() -> None:
    facts = bare(2)
    same_subject = [replace(fact, prompt=f"{fact.prompt} called", subject=facts[0].subject) for fact in facts]
    assert lend_unrelated(facts[:1], [facts[0], *same_subject], seed=0) == facts[:1]
    assert lend_unrelated(facts, [], seed=0) == facts
    [lent] = lend_unrelated(facts[:1], facts, seed=0)
    assert lent.unrelated in ((), (Unrelated(make_fact(1).prompt, make_fact(1).target),))


def test_nobody_is_lent_a_rephrase_its_own_or_of_another_one_that_is_edited() -> None:
    facts = bare(4)
    rephrase = replace(make_fact(50), prompt=facts[2].rephrases[0])
    other = make_fact(51)
    for seed in range(10):
        for fact in lend_unrelated(facts, [rephrase, other], seed):
            assert [x.prompt for x in fact.unrelated] == [other.prompt]
    assert lend_unrelated(facts, [rephrase], seed=0) == facts
