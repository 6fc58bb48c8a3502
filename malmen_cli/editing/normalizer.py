"""Mean and standard deviation of `[u; g]`, merged exactly from chunks of any size."""

from __future__ import annotations

import torch

from malmen_cli.editing.shapes import Float, Tensor


class Normalizer:
    """Running biased moments of rows of width d (Chan, Golub and LeVeque 1979, the pairwise update), float64.

    Updated in meta-training only; an editor carries it frozen. A chunk of one row is as good as any other.

    Attributes:
        count: rows seen. mean (d,). variance (d,): biased, that is divided by `count`.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.variance = torch.zeros(width, dtype=torch.float64)

    def update(self, rows: Float[Tensor, "n d"]) -> None:
        """Merge the moments of `rows`; an empty chunk changes nothing."""
        if not len(rows):
            return
        chunk = Normalizer(rows.shape[1])
        rows = rows.to("cpu", torch.float64)
        chunk.count, chunk.mean = len(rows), rows.mean(0)
        chunk.variance = (rows - chunk.mean).square().mean(0)
        self.merge(chunk)

    def merge(self, other: Normalizer) -> None:
        """Become the moments of both sets of rows together."""
        total = self.count + other.count
        if not total:
            return
        share = other.count / total
        gap = other.mean - self.mean
        self.variance = self.variance * (1 - share) + other.variance * share + gap.square() * (share * (1 - share))
        self.mean = self.mean + gap * share
        self.count = total

    def scale(self) -> tuple[Float[Tensor, "d"], Float[Tensor, "d"]]:
        """(mean, 1 / std) as float32; 1 / std is 0 where a dimension never varied, so that it maps to 0.

        Rounding leaves a constant dimension a variance of a few (eps * mean)^2: that counts as none, and so does one
        so small that 1 / std would overflow float32.
        """
        floor = (torch.finfo(torch.float64).eps * 64 * self.mean.abs()).square().clamp(min=1e-76)
        alive = self.variance > floor
        inverse = torch.where(alive, self.variance, torch.ones_like(self.variance)).rsqrt() * alive
        return self.mean.float(), inverse.float()
