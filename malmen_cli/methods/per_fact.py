"""What a per-fact method is to the rest of the program: rows of each fact alone, and a solve that adds them up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from malmen_cli.editing.editor import LayerShape
from malmen_cli.editing.preserved_keys import PreservedKeys


class Answer(Protocol):
    """What a solve gives: `editing.solution.Solution`, or a plain sum of outer products."""

    @property
    def param_shift(self) -> Tensor: ...

    @property
    def ridge(self) -> float: ...

    @property
    def preserved_strength(self) -> float: ...

    @property
    def form(self) -> str: ...

    @property
    def residual(self) -> float: ...

    @property
    def condition_number(self) -> float: ...


class RowEditor(Protocol):
    """An editor whose rows of a fact depend on that fact alone; one solve makes a shift of the rows of all facts.

    MALMEN (`editing.editor.Editor`), UltraEdit and MEND differ in their classes of this protocol and nowhere else.

    Attributes:
        preserved: per layer what must not change; None where nothing is said. everywhere: rows are captured at every
            token whose value gradient is not zero, and not just where `families.CAPTURED` says.
    """

    layers: tuple[LayerShape, ...]
    preserved: list[PreservedKeys | None]
    everywhere: bool

    def key_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What the left sides of rows are kept in, for a model of this dtype."""
        ...

    def rows(self, layer: int, keys: Tensor, value_grads: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides of the rows that a solve takes in, (n, d_in) and (n, d_out): of MALMEN u and d."""
        ...

    def equation(self, layer: int) -> Any:
        """An empty equation of the layer, with `update(left, right)` and `n`."""
        ...

    def solve(self, layer: int, equation: Any) -> Answer: ...

    def step_size(self, layer: int) -> Tensor: ...

    def forget(self, layer: int) -> None: ...

    def tensors(self) -> dict[str, Tensor]: ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...
