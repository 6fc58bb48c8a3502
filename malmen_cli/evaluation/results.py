"""What each state of a model answered to one prompt, and how the two answers stand to each other."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from malmen_cli.facts import Fact

Kind = Literal["edit", "rephrase", "unrelated"]
KINDS: tuple[Kind, ...] = ("edit", "rephrase", "unrelated")


def prompts_of(fact: Fact, kinds: Collection[Kind] = KINDS) -> Iterator[tuple[Kind, str, str]]:
    """A fact's prompts of these kinds, with the target that each should get; of unrelated ones, the gold answer."""
    if "edit" in kinds:
        yield "edit", fact.prompt, fact.target
    if "rephrase" in kinds:
        for prompt in fact.rephrases:
            yield "rephrase", prompt, fact.target
    if "unrelated" in kinds:
        for other in fact.unrelated:
            yield "unrelated", other.prompt, other.target


@dataclass(frozen=True, slots=True)
class Said:
    """One state's answer to one prompt.

    Attributes:
        answer: the likeliest token at every place of the target, the target's earlier tokens given, as text.
        accuracy: share of the target's tokens among them, 0 to 1.
        generated: the greedy answer. stopped: it ended by itself. exact_match: it is the target (`exact_match`).
            contains: the target occurs in it (`contains`). All four None where nothing was generated.
        new_probability: of the target, the geometric mean over its tokens. old_probability: the same of what the base
            answers by itself, as many tokens of it; None where that is not known, or is the target.
    """

    answer: str
    accuracy: float
    generated: str | None = None
    stopped: bool | None = None
    exact_match: bool | None = None
    contains: bool | None = None
    # Not compared: their last digits are those of sums, which texts beside them in a batch may move.
    new_probability: float | None = field(default=None, compare=False)
    old_probability: float | None = field(default=None, compare=False)

    @property
    def new_over_old(self) -> bool | None:
        """Whether the target is likelier than the base's own answer."""
        if self.new_probability is None or self.old_probability is None:
            return None
        return self.new_probability > self.old_probability

    def as_dict(self) -> dict[str, Any]:
        return {
            "answer": self.answer,
            "accuracy": self.accuracy,
            "generated": self.generated,
            "stopped": self.stopped,
            "exact_match": self.exact_match,
            "contains": self.contains,
            "new_probability": self.new_probability,
            "old_probability": self.old_probability,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """One prompt, asked before and after.

    Attributes:
        fact: index of the fact it belongs to. unchanged: share of the target's places, 0 to 1, at which the same
            token is predicted after as before, whether right or wrong.
    """

    kind: Kind
    fact: int
    prompt: str
    target: str
    before: Said
    after: Said
    unchanged: float

    @property
    def unchanged_generated(self) -> bool | None:
        """Whether the very same text is generated after as before; None where nothing was generated."""
        return None if self.after.generated is None else self.before.generated == self.after.generated

    @property
    def failed(self) -> bool:
        """Whether the target is not said after the edit: teacher-forced or, where it was asked so, generated."""
        return self.after.accuracy < 1 or self.after.exact_match is False

    def as_dict(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "target": self.target,
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "unchanged": {"teacher_forced": self.unchanged, "generated": self.unchanged_generated},
        }
