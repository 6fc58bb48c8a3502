"""Which facts of a file are edited and asked: a draw by its seed, of what fits the model, and what that is lent."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from malmen_cli.facts import Fact
from malmen_cli.facts.lending import lend_unrelated
from malmen_cli.language_models.tokenizing import Tokenizing


@dataclass(frozen=True)
class Draw:
    """Facts of a file, in the order of the draw.

    Attributes:
        places: in the file, of those that fit the model. facts: those. asked: the same ones, with unrelated prompts
            lent to those that have none. left_out: how many of the file's came up and do not fit the model; others have
            their places, as far as there are any.
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


def draw_of(
    facts: Sequence[Fact],
    free: Sequence[int],
    wanted: int | None,
    tokenizing: Tokenizing,
    seed: int,
    *,
    nested: bool = False,
) -> Draw:
    """So many facts, in the file's order; where one does not fit the model another takes its place.

    Args:
        free: places of all that may be drawn: those that are not lend their prompts. wanted: None for all of them.
        nested: in an order of their own instead, so that the first ones serve for smaller numbers.

    Raises:
        UsageError: none of them fits the model.
    """

    def fits(fact: Fact) -> bool:
        return tokenizing.fits(fact.prompt, fact.target) is not None

    drawn = [free[i] for i in choose(len(free), wanted, seed)]
    places, left_out = list[int](), 0
    for place in _coming_up(free, drawn, seed):
        if len(places) == len(drawn):
            break
        if fits(facts[place]):
            places.append(place)
        else:
            left_out += 1
    if not places:
        raise tokenizing.nothing_fits(facts[drawn[0]].prompt, facts[drawn[0]].target)
    places.sort()
    if nested:
        random.Random(f"{seed} order").shuffle(places)
    chosen = [facts[place] for place in places]
    lenders: list[Fact] = []
    if any(not fact.unrelated for fact in chosen):  # nobody is asked whether it fits where nobody borrows
        prompts = {fact.prompt for fact in chosen}
        lenders = [fact for fact in (facts[place] for place in free) if fact.prompt not in prompts and fits(fact)]
    return Draw(places, chosen, lend_unrelated(chosen, lenders, seed), left_out)


def _coming_up(free: Sequence[int], drawn: Sequence[int], seed: int) -> Iterator[int]:
    """Those that were drawn, then the others in the order in which they take the places of what does not fit."""
    yield from drawn
    others = sorted(set(free).difference(drawn))
    random.Random(f"{seed} instead").shuffle(others)
    yield from others
