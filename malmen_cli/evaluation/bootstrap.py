"""Bootstrap intervals: how far a score could have come out otherwise, had other facts been asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

RESAMPLES = 1000
SEED = 20240501
"""One seed for all: the same results give the same intervals on every run."""
_COUNTS = 1 << 20
"""Resampled facts that are counted at a time: 8 MiB of float64."""

Column = Sequence[tuple[int, float]]
"""One measure: of every prompt it was taken of, the index of its fact and the value."""


@dataclass(frozen=True, slots=True)
class Score:
    """A mean over prompts with its 95 % interval; of shares all three are 0 to 1.

    The interval is of a percentile bootstrap over facts. Of a score that is the same for every fact (all right, say, or
    one fact alone) it has no width, however few facts there were.
    """

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def scores_of(
    columns: Sequence[Column], facts: int, joined: Callable[[Tensor], Tensor] | None = None
) -> list[Score | None]:
    """The mean of each column, with its interval; None of an empty one.

    Whole facts are drawn, with all of their prompts: prompts of one fact stand and fall together, and to count them as
    independent would make the intervals too narrow. All columns see the same draws.

    Args:
        facts: number of facts; the indices in the columns are below it.
        joined: makes one more score, the last, of the means (..., columns that are not empty): a mean of means, say.
    """
    import torch

    there = [column for column in columns if column]
    if not there:
        return [None] * (len(columns) + (joined is not None))
    sums, counts = torch.zeros(2, facts, len(there), dtype=torch.float64)
    for place, column in enumerate(there):
        owners = torch.tensor([fact for fact, _ in column])
        values = torch.tensor([value for _, value in column], dtype=torch.float64)
        sums[:, place].index_add_(0, owners, values)
        counts[:, place].index_add_(0, owners, torch.ones_like(values))
    means = resampled_means(sums, counts)
    if joined is not None:
        means = torch.cat([means, joined(means).unsqueeze(1)], dim=1)
    found = iter(intervals(means))
    scores = [next(found) if column else None for column in columns]
    return scores if joined is None else [*scores, next(found)]


def resampled_means(sums: Tensor, counts: Tensor) -> Tensor:
    """Means (1 + RESAMPLES, columns), the first row of what there is and the others of facts drawn from it.

    Args:
        sums, counts: (facts, columns), of each fact the sum of its values, and how many they are. float64.
    """
    import torch

    table = torch.cat([sums, counts], dim=1)
    drawn = [draws @ table for draws in _draws(len(table))]
    over, under = torch.cat([table.sum(0, keepdim=True), *drawn]).chunk(2, dim=1)
    return over / under


def intervals(means: Tensor) -> list[Score]:
    """The score of each column of what `resampled_means` gives."""
    import torch

    # A draw may have missed all facts that have any such prompt: 0 / 0 is left out.
    ends = torch.nanquantile(means[1:], torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    return [Score(*numbers) for numbers in zip(means[0].tolist(), *ends.tolist(), strict=True)]


def _draws(facts: int) -> Iterator[Tensor]:
    """How often each fact was drawn, resample by resample: matrices (some resamples, facts), all of them RESAMPLES."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    one = torch.ones((), dtype=torch.float64)
    at_once = max(1, _COUNTS // facts)
    for start in range(0, RESAMPLES, at_once):
        drawn = torch.randint(facts, (min(at_once, RESAMPLES - start), facts), generator=generator)
        yield torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, one.expand(drawn.shape))
