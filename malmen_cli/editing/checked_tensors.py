"""Tensors that a stranger may have written: names, shapes, dtypes and finite numbers, before any is used."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from malmen_cli.editing.shapes import Tensor
from malmen_cli.errors import UnsafeFile

Expected = tuple[tuple[int | None, ...], set[torch.dtype]]
"""A shape, with None where any size will do, and the dtypes that fit."""


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Expected], optional: Collection[str] = ()
) -> None:
    """Refuse tensors that are not just those expected. A tensor called `*.count` must be at least 1.

    Args:
        optional: names that may be missing.

    Raises:
        UnsafeFile: naming the first tensor that does not fit.
    """
    unknown, missing = tensors.keys() - expected.keys(), expected.keys() - tensors.keys() - set(optional)
    if unknown or missing:
        raise UnsafeFile(f"editor: unknown tensors {sorted(unknown)[:3]}, missing tensors {sorted(missing)[:3]}")
    for name, tensor in tensors.items():
        shape, dtype = expected[name]
        fits = len(shape) == tensor.ndim and all(w in (None, g) for w, g in zip(shape, tensor.shape, strict=True))
        if not fits or tensor.dtype not in dtype:
            raise UnsafeFile(f"editor: tensor {name} is {tuple(tensor.shape)} {tensor.dtype}, wanted {shape} {dtype}")
        if not bool(torch.isfinite(tensor).all()):
            raise UnsafeFile(f"editor: tensor {name} is not finite")
        if name.endswith(".count") and int(tensor) < 1:
            raise UnsafeFile(f"editor: tensor {name} is {int(tensor)}, wanted at least 1")
