"""The six scores of an edited model and their harmonic mean: the field's summary of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from malmen_cli.evaluation.bootstrap import Column, Score, scores_of

if TYPE_CHECKING:
    from torch import Tensor

Subject = Literal["reliability", "generalisation", "locality"]
SUBJECTS: tuple[Subject, ...] = ("reliability", "generalisation", "locality")

__all__ = ["SUBJECTS", "Pair", "Score", "SixScores", "Subject", "six_scores", "those_there"]


@dataclass(frozen=True, slots=True)
class Pair:
    """One score by both ways of asking; None where nothing was asked, or nothing generated.

    Attributes:
        forced: teacher-forced, the share of tokens. generated: the share of free greedy answers, natural stopping.
    """

    forced: Score | None
    generated: Score | None

    def as_dict(self) -> dict[str, dict[str, float] | None]:
        return {
            "teacher_forced": None if self.forced is None else self.forced.as_dict(),
            "generated": None if self.generated is None else self.generated.as_dict(),
        }


@dataclass(frozen=True, slots=True)
class SixScores:
    """What an edited model does, 0 to 1, each score with its interval.

    Attributes:
        reliability: of edit prompts, tokens of the target predicted, and answers that are the target (exact match).
        generalisation: the same of rephrases. locality: of unrelated prompts, tokens predicted as by the base, and
            answers that are those of the base to the letter, right or wrong.
        harmonic_mean: the plain one, of those of the six that are there: 0 if one of them is 0; None if none is there.
    """

    reliability: Pair
    generalisation: Pair
    locality: Pair
    harmonic_mean: Score | None

    def __iter__(self) -> Iterator[tuple[Subject, Pair]]:
        return iter([(subject, getattr(self, subject)) for subject in SUBJECTS])

    def as_dict(self) -> dict[str, Any]:
        mean = self.harmonic_mean
        return {
            **{subject: pair.as_dict() for subject, pair in self},
            "harmonic_mean": None if mean is None else mean.as_dict(),
        }


def those_there(count: int) -> str:
    """What a harmonic mean of so many scores is of, in words: without rephrases, say, some of the six are not there."""
    return "the six scores" if count == 6 else f"{count} score{'' if count == 1 else 's'}"


def six_scores(forced: Sequence[Column], generated: Sequence[Column], facts: int) -> SixScores:
    """The six scores of results.

    Args:
        forced, generated: of reliability, generalisation and locality in this order, every prompt's fact and value.
        facts: how many facts there are; the intervals are over them.
    """
    *six, mean = scores_of([*forced, *generated], facts, _harmonic_mean)
    reliability, generalisation, locality = (Pair(a, b) for a, b in zip(six[:3], six[3:], strict=True))
    return SixScores(reliability, generalisation, locality, mean)


def _harmonic_mean(means: Tensor) -> Tensor:
    # 1 / 0 is infinite here, and the mean then 0.
    mean: Tensor = means.shape[1] / (1 / means).sum(1)
    return mean
