"""Between the checkpoint's bytes and torch: the only place that knows both spellings of a dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from malmen_cli.errors import UnsupportedModel

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a safetensors one that weights may be edited in.

    Raises:
        UnsupportedModel: integer, 8-bit or float64 weights.
    """
    if name not in DTYPES:
        raise UnsupportedModel(f"weights of dtype {name} cannot be edited", remedy=f"Only {', '.join(DTYPES)} can.")
    return DTYPES[name]


def from_bytes(data: bytes, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """A tensor of its own memory from a tensor's bytes as they lie in a file (little-endian, row-major)."""
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(tuple(shape))


def to_bytes(tensor: Tensor) -> bytes:
    """The bytes of a tensor as they lie in a file."""
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
