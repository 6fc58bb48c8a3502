"""Figures of a weight's change: how large it is, of what rank, and how much of the weight it moved.

Singular values come from the eigenvalues of the smaller Gram matrix, in float64: those below about 1e-8 of the largest
are noise, and neither the effective rank nor the largest few notice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from malmen_cli.editing.linear_algebra import add_gram, in_double
from malmen_cli.editing.shapes import Float, Tensor


@dataclass(frozen=True)
class Change:
    """One tensor's change from `before` to `after`.

    Attributes:
        norm: Frobenius norm. relative_norm: over the base's norm. largest_change: in absolute value.
        effective_rank: exp of the entropy of the normalised singular values (Roy and Vetterli 2007); 0 for no change.
        share_moved: of the weights, 0 to 1. singular_values: all of them, largest first, float64 on the CPU.
    """

    norm: float
    relative_norm: float
    largest_change: float
    effective_rank: float
    share_moved: float
    singular_values: Tensor

    def figures(self) -> dict[str, float]:
        """Everything but the singular values, by name."""
        return {
            "norm": self.norm,
            "relative_norm": self.relative_norm,
            "largest_change": self.largest_change,
            "effective_rank": self.effective_rank,
            "share_moved": self.share_moved,
        }


def measure_change(
    before: Float[Tensor, "d_in d_out"], after: Float[Tensor, "d_in d_out"], base: Float[Tensor, "d_in d_out"]
) -> Change:
    """Figures of `after - before`, from one eigen-decomposition; either orientation will do. All must be finite."""
    change = in_double(after) - in_double(before)
    norm = float(change.norm())
    narrow = change.T if change.shape[0] < change.shape[1] else change
    gram = change.new_zeros(narrow.shape[1], narrow.shape[1])
    add_gram(gram, narrow)
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()  # which reads the lower triangle alone
    share = singular / singular.sum().clamp(min=1e-300)
    entropy = -(share * share.clamp(min=1e-300).log()).sum()
    return Change(
        norm=norm,
        relative_norm=norm / max(float(torch.linalg.vector_norm(base, dtype=torch.float64)), 1e-300),
        largest_change=float(torch.linalg.vector_norm(change, math.inf)),
        effective_rank=float(entropy.exp()) if norm else 0.0,
        share_moved=int(torch.count_nonzero(change)) / change.numel(),
        singular_values=singular.flip(0).cpu(),
    )


def change_figures(before: Tensor, after: Tensor, base: Tensor) -> dict[str, float]:
    """`measure_change` as the ledger keeps it, without singular values."""
    return measure_change(before, after, base).figures()
