"""MEND (Mitchell et al., ICLR 2022, arXiv 2110.11309), as MALMEN compares with it: the same hyper-network, but the
shift is the sum of the rows' outer products, without an inverse.

    S = sum_i -eta u~_i g~_i^T = U~^T D,   D = -eta G~

Rows are captured at every token whose value gradient is not zero. With G = dL/dS: dL/dD = U~ G and dL/dU~ = D G^T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from malmen_cli.editing.editor import Editor
from malmen_cli.editing.linear_algebra import in_double
from malmen_cli.errors import NumericalFailure


@dataclass(frozen=True)
class Sum:
    """A shift that no equation was solved for.

    Attributes:
        param_shift: S (d_in, d_out), float64.
    """

    param_shift: Tensor
    ridge: float = 0.0
    preserved_strength: float = 0.0
    form: str = "sum"
    residual: float = 0.0
    condition_number: float = 1.0


class OuterProducts:
    """U~^T D, summed chunk by chunk in float64; memory is O(d_in d_out) whatever the number of rows."""

    def __init__(self, d_in: int, d_out: int) -> None:
        self.d_in, self.d_out, self.n = d_in, d_out, 0
        self._sum: Tensor | None = None

    def update(self, pseudo_keys: Tensor, value_diffs: Tensor) -> OuterProducts:
        """Take in rows (n, d_in) and (n, d_out) of any floating dtype. Returns itself."""
        if pseudo_keys.shape[1] != self.d_in or value_diffs.shape[1] != self.d_out:
            raise ValueError(f"rows {tuple(pseudo_keys.shape)}, {tuple(value_diffs.shape)}")
        left, right = in_double(pseudo_keys), in_double(value_diffs)
        if self._sum is None:
            self._sum = left.new_zeros(self.d_in, self.d_out)
        self._sum.addmm_(left.T, right)
        self.n += len(left)
        return self

    def solved(self) -> Sum:
        """Raises NumericalFailure where the sum is not finite."""
        if self._sum is None:
            raise ValueError("a sum without rows")
        if not bool(torch.isfinite(self._sum).all()):
            raise NumericalFailure(
                "the sum of outer products is not finite", remedy="Apply fewer facts, or train the editor again."
            )
        return Sum(self._sum)


class MendEditor(Editor):
    """MALMEN's hyper-network with MEND's sum in place of the least squares. It has no use for preserved keys."""

    everywhere = True
    preserves = False

    def key_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Pseudo keys are computed in float32, and kept so."""
        return torch.float32

    def rows(self, layer: int, keys: Tensor, value_grads: Tensor) -> tuple[Tensor, Tensor]:
        """u~ (n, d_in) and -eta g~ (n, d_out)."""
        pseudo_keys, pseudo_value_grads = self.pseudo(layer, keys, value_grads)
        return pseudo_keys, -self.step_size(layer) * pseudo_value_grads

    def equation(self, layer: int, form: Any = None, *, repeated: bool = False) -> Any:
        """An empty sum of the layer."""
        return OuterProducts(self.layers[layer].d_in, self.layers[layer].d_out)

    def solve(self, layer: int, equation: Any) -> Any:
        return equation.solved()

    def pull_back(
        self, layer: int, solution: Any, keys: Tensor, param_grads: Tensor
    ) -> Callable[[slice, Tensor, Tensor], Tensor]:
        """See `Editor.pull_back`: <U~ G, D> over some rows, whose derivatives are both those of the sum."""
        grads = param_grads.to(keys.device, torch.float32)
        return lambda part, left, right: (left.float() @ grads * right.float()).sum()
