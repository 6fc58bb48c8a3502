"""Scores of an editor on held-out rows, at several numbers of facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from malmen_cli.evaluation.metrics import Scores, mean
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.training.rows import TrainingRow
from malmen_cli.training.step import MetaStep

SIZES = (1, 8, 64, 256, 1024)
ASKED, REPEATS = 128, 16
"""Of each size sets are scored until so many facts were asked, but no more sets than this. The best editor of a run is
chosen by these scores, and of two facts they are mostly noise."""


@dataclass(frozen=True)
class Validation:
    """Scores per number of facts edited at once."""

    scores: dict[int, Scores]

    @property
    def summary(self) -> float:
        """What the best editor is chosen by: the mean over sizes of the harmonic mean of ES, GS and LS."""
        return mean([s.harmonic_mean for s in self.scores.values()]) or 0.0

    def as_dict(self) -> dict[str, dict[str, float | None]]:
        return {str(size): scores.as_dict() for size, scores in self.scores.items()}


def validation_sizes(largest: int, available: int) -> list[int]:
    """The sizes scored: of `SIZES` those that training covers and the held-out rows allow, or the nearest to it."""
    bound = min(largest, available)
    return [size for size in SIZES if size <= bound] or [bound]


def expecting_the_base(model: LanguageModel, rows: Sequence[TrainingRow], batch_tokens: int) -> list[TrainingRow]:
    """The rows, of which lent prompts expect what the model, at its base weights, says to them.

    Their own targets are those of facts that are not edited here: whoever says them has not left them alone.
    """
    lent = [text for row in rows if row.lent for text in row.unrelated]
    said = iter(model.predictions(lent, batch_tokens=batch_tokens))
    return [
        replace(row, unrelated=tuple(replace(text, labels=tuple(next(said))) for text in row.unrelated))
        if row.lent
        else row
        for row in rows
    ]


def validate(step: MetaStep, rows: Sequence[TrainingRow], sizes: Sequence[int]) -> Validation:
    """Edit sets of held-out rows in memory and score each; the model is at its base weights before and after."""
    return Validation({size: _score(step, rows, size) for size in sizes})


def _score(step: MetaStep, rows: Sequence[TrainingRow], size: int) -> Scores:
    edit: list[float] = []
    equivalent: list[float] = []
    unrelated: list[float] = []
    for repeat in range(min(REPEATS, -(-ASKED // size), len(rows) // size)):
        texts = range(repeat * size, (repeat + 1) * size)
        step.model.set_weights(step.edited_weights(texts)[0])
        try:
            part = [rows[t] for t in texts]
            edit += step.token_accuracy([r.edit for r in part])
            equivalent += step.token_accuracy([t for r in part for t in r.equivalent if t is not r.edit])
            unrelated += step.token_accuracy([t for r in part for t in r.unrelated])
        finally:
            step.model.set_weights(step.base)
    return Scores(mean(edit), mean(equivalent), mean(unrelated))
