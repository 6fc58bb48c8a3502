"""Between the checkpoint's bytes and torch: the only place that knows both spellings of a dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from malmen_cli.checkpoint.digests import digest_bytes
from malmen_cli.checkpoint.manifest import TensorRecord
from malmen_cli.checkpoint.safetensors_file import read_tensor
from malmen_cli.errors import NOT_OURS, UnsupportedModel, WrongBase
from malmen_cli.ledger import Ledger, ModelRecord
from malmen_cli.ledger.objects import ObjectStore

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


def stored_tensor(objects: ObjectStore, record: TensorRecord, digest: str) -> Tensor:
    """One of the states of a checkpoint's tensor, from its object."""
    return from_bytes(objects.get(digest), torch_dtype(record.dtype), record.shape)


def base_tensor(ledger: Ledger, model: ModelRecord, tensor: str) -> Tensor:
    """A tensor at the base: from its object, or from the checkpoint where it was never edited and never stored.

    Raises:
        WrongBase: the checkpoint's bytes are not the base's.
    """
    record = model.manifest.tensors[tensor]
    if ledger.objects.contains(record.digest):
        return stored_tensor(ledger.objects, record, record.digest)
    data = read_tensor(model.path / record.file, model.manifest.slot(tensor))
    if digest_bytes(data) != record.digest:
        raise WrongBase(
            f"tensor {tensor} in {model.path} is not as it is in the base",
            remedy=NOT_OURS,
        )
    return from_bytes(data, torch_dtype(record.dtype), record.shape)


def to_bytes(tensor: Tensor) -> bytes:
    """The bytes of a tensor as they lie in a file."""
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def buffer_of(tensor: Tensor) -> memoryview:
    """The bytes of a tensor on the CPU, written to or read from in place; of another one those of a copy."""
    return memoryview(tensor.detach().cpu().contiguous().view(torch.uint8).reshape(-1).numpy())  # type: ignore[arg-type]
