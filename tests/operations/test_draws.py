"""Draws of facts: what does not fit the model is neither edited nor lent, and a seed means the same everywhere."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import load, make_facts

from malmen_cli.errors import UsageError
from malmen_cli.facts import Fact
from malmen_cli.language_models.tokenizing import Tokenizing
from malmen_cli.operations.draws import choose, draw_of

LONG = "Once " * 400


@pytest.fixture
def tokenizing(tiny_folder: Callable[..., Path]) -> Tokenizing:
    return load(tiny_folder("gpt2")).tokenizing


def long(fact: Fact) -> Fact:
    return replace(fact, prompt=LONG + fact.prompt)


def test_what_does_not_fit_is_neither_edited_nor_lent(tokenizing: Tokenizing) -> None:
    short = [replace(fact, unrelated=()) for fact in make_facts(4)]
    facts = [short[0], *map(long, short), short[3]]
    for seed in range(20):
        draw = draw_of(facts, range(len(facts)), 1, tokenizing, seed)
        # Of the five that could lend four have no room.
        [place], [lent] = draw.places, draw.asked[0].unrelated
        assert {facts[place], facts[5 - place]} == {short[0], short[3]} and draw.facts == [facts[place]]
        assert lent.prompt == facts[5 - place].prompt and draw.lent == 1
    with pytest.raises(UsageError, match="no fact fits"):
        draw_of(facts, [1, 2, 3, 4], 2, tokenizing, 0)


def test_others_take_the_places_of_what_does_not_fit(tokenizing: Tokenizing) -> None:
    short = make_facts(12)
    facts = [long(fact) if place % 3 else fact for place, fact in enumerate(short)]  # 0, 3, 6 and 9 fit
    for seed in range(20):
        for wanted in range(1, 5):
            draw = draw_of(facts, range(12), wanted, tokenizing, seed)
            drawn = choose(12, wanted, seed)
            assert len(draw.places) == wanted and set(draw.places) <= {0, 3, 6, 9}
            assert {place for place in drawn if place % 3 == 0} <= set(draw.places)
            assert draw.places == sorted(draw.places) and draw.facts == [facts[place] for place in draw.places]
            assert draw.left_out >= sum(place % 3 > 0 for place in drawn)
            nested = draw_of(facts, range(12), wanted, tokenizing, seed, nested=True)
            assert sorted(nested.places) == draw.places
        for wanted in (5, 12, 99, None):
            draw = draw_of(facts, range(12), wanted, tokenizing, seed)
            assert (draw.places, draw.left_out) == ([0, 3, 6, 9], 8)
    # Each that fits comes up, whichever the others are.
    assert {draw_of(facts, range(12), 1, tokenizing, seed).places[0] for seed in range(50)} == {0, 3, 6, 9}


def test_a_rephrase_of_what_is_edited_is_lent_to_nobody(tokenizing: Tokenizing) -> None:
    a, b, c = (replace(fact, unrelated=()) for fact in make_facts(3))
    facts = [a, replace(b, prompt=a.rephrases[0]), c]
    seed = next(seed for seed in range(100) if choose(3, 2, seed) == [0, 2])
    draw = draw_of(facts, range(3), 2, tokenizing, seed)
    assert (draw.asked, draw.lent) == ([a, c], 0)


def test_what_has_unrelated_prompts_is_asked_those(tokenizing: Tokenizing) -> None:
    facts = make_facts(4)
    draw = draw_of(facts, [2, 0], None, tokenizing, 0)
    assert (draw.facts, draw.asked, draw.lent) == ([facts[0], facts[2]], [facts[0], facts[2]], 0)


def test_a_seed_draws_the_same_facts_in_any_order(tokenizing: Tokenizing) -> None:
    facts, free = make_facts(35), [3, 5, 8, 13, 21, 34]
    orders = set()
    for seed in range(5):
        places = [free[i] for i in sorted(random.Random(seed).sample(range(6), 4))]
        draw = draw_of(facts, free, 4, tokenizing, seed)
        assert (draw.places, draw.left_out) == (places, 0)
        random.Random(f"{seed} order").shuffle(places)
        assert draw_of(facts, free, 4, tokenizing, seed, nested=True).places == places
        orders.add(tuple(places))
    assert len(orders) > 1
    assert choose(6, None, 0) == choose(6, 9, 1) == list(range(6))
