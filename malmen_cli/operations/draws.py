"""Which facts of a file are edited and asked: a draw by its seed, of what fits the model, and what that is lent."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from malmen_cli.facts import Fact
from malmen_cli.facts.lending import lend_unrelated
from malmen_cli.language_models.tokenizing import Tokenizing


@dataclass(frozen=True)
class Draw:
    """Facts of a file, in the order of the draw.

    Attributes:
        places: in the file, of those that fit the model. facts: those. asked: the same ones, with unrelated prompts
            lent to those that have none. left_out: how many of the file's that were drawn do not fit the model.
    """

    places: list[int]
    facts: list[Fact]
    asked: list[Fact]
    left_out: int

    @property
    def lent(self) -> int:
        """Facts that were lent unrelated prompts."""
        return sum(len(a.unrelated) > len(b.unrelated) for a, b in zip(self.asked, self.facts, strict=True))


def choose(available: int, wanted: int | None, seed: int) -> list[int]:
    """Indices of a sample, drawn by `seed` alone, in ascending order; all of them where no fewer are wanted."""
    if wanted is None or wanted >= available:
        return list(range(available))
    return sorted(random.Random(seed).sample(range(available), wanted))


def drawn(free: Sequence[int], size: int, seed: int) -> list[int]:
    """Places of so many facts: those of `malmen eval` with this number and seed, in an order of their own."""
    places = [free[i] for i in choose(len(free), size, seed)]
    random.Random(f"{seed} order").shuffle(places)
    return places


def draw_of(
    facts: Sequence[Fact], places: Sequence[int], free: Sequence[int], tokenizing: Tokenizing, seed: int
) -> Draw:
    """The facts at some places.

    Args:
        free: places of all that might have been drawn: those that are not lend their prompts.

    Raises:
        UsageError: none of them fits the model.
    """

    def fits(fact: Fact) -> bool:
        return tokenizing.fits(fact.prompt, fact.target) is not None

    fitting = [place for place in places if fits(facts[place])]
    if not fitting:
        raise tokenizing.nothing_fits(facts[places[0]].prompt, facts[places[0]].target)
    chosen = [facts[place] for place in fitting]
    lenders: list[Fact] = []
    if any(not fact.unrelated for fact in chosen):  # nobody is asked whether it fits where nobody borrows
        prompts = {fact.prompt for fact in chosen}
        lenders = [fact for fact in (facts[place] for place in free) if fact.prompt not in prompts and fits(fact)]
    return Draw(fitting, chosen, lend_unrelated(chosen, lenders, seed), len(places) - len(fitting))
