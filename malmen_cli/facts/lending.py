"""Unrelated prompts for facts that have none: those of other facts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from malmen_cli.facts.fact import Fact, Unrelated

_TRIES = 8  # drawn lenders of the very same subject are passed over so often


def lend_unrelated(facts: Sequence[Fact], lenders: Sequence[Fact], seed: int) -> list[Fact]:
    """The facts, each that has no unrelated prompt with another one's prompt and target as its unrelated prompt.

    The published sets for FEVER are made so (arXiv 2110.11309, appendix). Of the same lenders a fact is lent the same
    prompt whatever facts borrow beside it, so long as none of them has a lender's prompt as its rephrase: that is lent
    to nobody.

    Args:
        lenders: facts that are not edited together with these, or whose edits whoever asks takes care of.
    """
    rephrases = {prompt for fact in facts for prompt in fact.rephrases}
    lenders = [lender for lender in lenders if lender.prompt not in rephrases]
    return [fact if fact.unrelated else _borrowing(fact, lenders, seed) for fact in facts]


def _borrowing(fact: Fact, lenders: Sequence[Fact], seed: int) -> Fact:
    draw = random.Random(f"{seed} {fact.digest}")
    for _ in range(_TRIES if lenders else 0):
        lender = lenders[draw.randrange(len(lenders))]
        if lender.prompt != fact.prompt and (lender.subject is None or lender.subject != fact.subject):
            return replace(fact, unrelated=(Unrelated(lender.prompt, lender.target),))
    return fact
