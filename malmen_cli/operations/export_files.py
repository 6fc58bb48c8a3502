"""The files of a delta and of a LoRA adapter, from the stored bytes of a state and of the base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from malmen_cli.editing.low_rank import low_rank, smallest_rank
from malmen_cli.errors import UsageError, VerificationFailed
from malmen_cli.operations.states import TensorBytes
from malmen_cli.operations.tensors import from_bytes, torch_dtype

LARGEST_RANK = 64
"""Rank of an adapter, where none is named, at most."""

_TASK_TYPES = {"causal": "CAUSAL_LM", "sequence-to-sequence": "SEQ_2_SEQ_LM"}
"""PEFT's names. Under its own name for classification it would look for a new head in the adapter: it gets none."""

GOOD_ENOUGH = 0.01
"""Relative error of the shift up to which a smaller rank will do."""


def delta_files(stored: TensorBytes, record: dict[str, Any]) -> tuple[dict[str, bytes], list[str]]:
    """`delta.safetensors`: after minus base, by tensor name, in the checkpoint's orientation; and warnings.

    float32 where `base + delta`, summed in float32 and rounded to the checkpoint's dtype, gives the edited bytes back;
    else float64 (as for most float32 checkpoints: a float32 difference of float32 numbers is itself rounded).
    `record`, the provenance, is told the dtype of each and whether the sum is exact.
    """
    tensors, warnings = {}, []
    for name, about in record["tensors"].items():
        base, edited = _states(stored, name, about)
        delta, exact = difference(base, edited)
        tensors[name] = delta
        about |= {"delta_dtype": "F32" if delta.dtype == torch.float32 else "F64", "exact": exact}
        if not exact:
            warnings.append(f"{name}: base + delta does not round to the edited bytes everywhere")
    return {"delta.safetensors": _safetensors(tensors)}, warnings


def difference(base: Tensor, edited: Tensor) -> tuple[Tensor, bool]:
    """`edited - base` in the narrower of float32 and float64 that gives the very bytes back, and whether it does."""
    delta = torch.empty(0)
    for dtype in (torch.float32, torch.float64):
        wide, wanted = base.to(dtype), edited.to(dtype)
        # Of two zeros the second one's sign survives: -0 + 0 would be 0.
        delta = torch.where((wide == 0) & (wanted == 0), wanted, wanted - wide)
        summed = (wide + delta).to(base.dtype)
        if torch.equal(summed.view(torch.uint8), edited.view(torch.uint8)):
            return delta, True
    return delta, False


def lora_files(stored: TensorBytes, record: dict[str, Any], rank: int | None) -> tuple[dict[str, bytes], list[str]]:
    """A PEFT adapter of one rank for all layers, and a warning where it keeps the shift to no more than 1 %.

    `record`, the provenance, is told the rank and the relative error of each tensor.

    Raises:
        UsageError: the rank is larger than that of any edited matrix, which would be zeros for nothing.
    """
    edited = {name: about for name, about in record["tensors"].items() if about["module"] is not None}
    if len(edited) != len(record["tensors"]):
        raise VerificationFailed("an edited tensor belongs to no known layer", remedy="use --as full or --as delta")
    largest = max(min(about["shape"]) for about in edited.values())
    if rank is not None and rank > largest:
        raise UsageError(
            f"a rank of {rank:,} is larger than any edited matrix has, which is {largest:,} at most",
            remedy=f"give --rank {largest}, which keeps the whole shift, or less",
        )
    if rank is None:
        rank = max(smallest_rank(_shift(stored, name, about), GOOD_ENOUGH) for name, about in edited.items())
        rank = min(rank, LARGEST_RANK)
    tensors: dict[str, Tensor] = {}
    for name, about in edited.items():
        found = low_rank(_shift(stored, name, about), rank)
        about["relative_error"] = found.relative_error
        prefix = f"base_model.model.{about['module']}"
        tensors |= {f"{prefix}.lora_A.weight": found.A, f"{prefix}.lora_B.weight": found.B}
    record |= {"rank": rank, "relative_error": max(about["relative_error"] for about in edited.values())}
    warnings = []
    if record["relative_error"] > GOOD_ENOUGH:
        warnings.append(f"rank {rank} keeps the shift to a relative error of {record['relative_error']:.1%} only")
    files = {
        "adapter_config.json": (json.dumps(_adapter_config(record, rank), indent=2, sort_keys=True) + "\n").encode(),
        "adapter_model.safetensors": _safetensors(tensors),
    }
    return files, warnings


def _adapter_config(record: Mapping[str, Any], rank: int) -> dict[str, Any]:
    abouts = record["tensors"].values()
    return {
        "peft_type": "LORA",
        "task_type": _TASK_TYPES.get(record["task"]),
        # Not the ledger's name for it: peft would take that for a folder, in which the edited checkpoint may lie.
        "base_model_name_or_path": record["base_repo"],
        "revision": record["base_revision"],
        "r": rank,
        "lora_alpha": rank,  # a scaling of 1
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": all(about["orientation"] == "d_in,d_out" for about in abouts),
        "target_modules": sorted(about["module"] for about in abouts),
        "inference_mode": True,
    }


def _shift(stored: TensorBytes, name: str, about: Mapping[str, Any]) -> Tensor:
    """Edited minus base (d_in, d_out), float64."""
    base, edited = _states(stored, name, about)
    shift = edited.double() - base.double()
    return shift if about["orientation"] == "d_in,d_out" else shift.T


def _states(stored: TensorBytes, name: str, about: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """The tensor at the base and after the edit, in the checkpoint's dtype and orientation."""
    found = []
    for digest in (about["before"], about["after"]):
        data = stored.get(name, digest)
        if data is None:
            raise VerificationFailed(f"the bytes of {name} are not stored", remedy="run malmen verify")
        found.append(from_bytes(data, torch_dtype(about["dtype"]), about["shape"]))
    return found[0], found[1]


def _safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
