"""Tensor types that name their shapes, for example `Float[Tensor, "n d_in"]`.

Tests check them at run time (jaxtyping's import hook with beartype); an installation without jaxtyping reads them as
plain `Tensor`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int
else:
    try:
        from jaxtyping import Float, Int
    except ModuleNotFoundError:

        class _AnyShape:
            def __class_getitem__(cls, item):
                return item[0]

        Float = Int = _AnyShape

__all__ = ["Float", "Int", "Tensor"]
