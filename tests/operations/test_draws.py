"""Draws of facts: what does not fit the model is neither edited nor lent, and a seed means the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import load, make_facts

from malmen_cli.errors import UsageError
from malmen_cli.language_models.tokenizing import Tokenizing
from malmen_cli.operations.draws import choose, draw_of, drawn

LONG = "Once " * 400


@pytest.fixture
def tokenizing(tiny_folder: Callable[..., Path]) -> Tokenizing:
    return load(tiny_folder("gpt2")).tokenizing


def test_what_does_not_fit_is_neither_edited_nor_lent(tokenizing: Tokenizing) -> None:
    short = [replace(fact, unrelated=()) for fact in make_facts(4)]
    long = [replace(fact, prompt=LONG + fact.prompt) for fact in short]
    facts = [short[0], long[0], *long[1:], short[3]]
    for seed in range(20):
        draw = draw_of(facts, [0, 1], range(len(facts)), tokenizing, seed)
        assert (draw.places, draw.facts, draw.left_out, draw.lent) == ([0], [short[0]], 1, 1)
        # Three of the four that could lend have no room.
        assert [other.prompt for other in draw.asked[0].unrelated] == [short[3].prompt]
    with pytest.raises(UsageError, match="fits"):
        draw_of(facts, [1, 2], range(len(facts)), tokenizing, 0)


def test_a_rephrase_of_what_is_edited_is_lent_to_nobody(tokenizing: Tokenizing) -> None:
    a, b, c = (replace(fact, unrelated=()) for fact in make_facts(3))
    facts = [a, replace(b, prompt=a.rephrases[0]), c]
    draw = draw_of(facts, [0, 2], range(3), tokenizing, 0)
    assert (draw.asked, draw.lent) == ([a, c], 0)


def test_what_has_unrelated_prompts_is_asked_those(tokenizing: Tokenizing) -> None:
    facts = make_facts(4)
    draw = draw_of(facts, [2, 0], range(4), tokenizing, 0)
    assert (draw.facts, draw.asked, draw.lent) == ([facts[2], facts[0]], [facts[2], facts[0]], 0)


def test_a_seed_draws_the_same_facts_in_any_order() -> None:
    free = [3, 5, 8, 13, 21, 34]
    for seed in range(5):
        assert sorted(drawn(free, 4, seed)) == [free[i] for i in choose(len(free), 4, seed)]
    assert choose(6, None, 0) == choose(6, 9, 1) == list(range(6))
