"""The best approximation of a parameter shift by two thin matrices, as a LoRA adapter holds them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from malmen_cli.editing.linear_algebra import in_double
from malmen_cli.editing.shapes import Float, Tensor


@dataclass(frozen=True)
class LowRank:
    """`shift ~ (B A)^T`, balanced: both carry the square roots of the singular values.

    Attributes:
        A: (rank, d_in). B: (d_out, rank). Both float32. relative_error: |shift - (B A)^T| / |shift|.
    """

    A: Tensor
    B: Tensor
    relative_error: float


def low_rank(shift: Float[Tensor, "d_in d_out"], rank: int) -> LowRank:
    """The truncated singular value decomposition of a shift (Eckart and Young 1936), padded with zeros to `rank`.

    Decomposes the smaller Gram matrix in float64: singular values below about 1e-8 of the largest are noise.
    """
    S = in_double(shift)
    d_in, d_out = S.shape
    swapped = d_in > d_out
    if swapped:
        S = S.T
    values, vectors = torch.linalg.eigh(S @ S.T)
    kept = min(rank, len(values))
    U = vectors.flip(1)[:, :kept]  # (smaller, kept), the largest singular value first
    root = values.flip(0)[:kept].clamp(min=0).pow(0.25)
    inverse = torch.where(root > 0, 1 / root.clamp(min=1e-300), 0)
    short, long = U * root, S.T @ U * inverse  # short @ long.T = U U^T S
    in_side, out_side = (long, short) if swapped else (short, long)
    A, B = S.new_zeros(rank, d_in), S.new_zeros(d_out, rank)
    A[:kept], B[:, :kept] = in_side.T, out_side
    A, B = A.float(), B.float()
    error = (in_double(shift) - (in_double(B) @ in_double(A)).T).norm() / S.norm().clamp(min=1e-300)
    return LowRank(A, B, float(error))


def smallest_rank(shift: Float[Tensor, "d_in d_out"], relative_error: float) -> int:
    """The smallest rank, 1 or more, whose truncation costs at most `relative_error` of the shift's norm."""
    S = in_double(shift)
    gram = S @ S.T if S.shape[0] <= S.shape[1] else S.T @ S
    left_out = torch.linalg.eigvalsh(gram).clamp(min=0).cumsum(0)  # squared error of leaving out the smallest 1, 2, ...
    dropped = int((left_out <= relative_error**2 * left_out[-1]).sum())
    return max(1, len(left_out) - dropped)
