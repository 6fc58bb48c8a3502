"""Edited weights as a checkpoint's files hold them, and how far two of them lie apart, in shares of the shift."""

from __future__ import annotations

from safetensors.torch import load_file
from tiny_models import World
from torch import Tensor

from malmen_cli.operations.tensors import to_bytes

Weights = dict[str, Tensor]


def weights(world: World) -> Weights:
    """The tensors that this model's edits touch, by their names in the files."""
    with world.ledger() as (_, model):
        names = {layer["tensor"] for layer in model.architecture["layers"]}
    files = sorted(world.checkpoint.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items() if name in names}


def difference(a: Weights, b: Weights, base: Weights) -> float:
    """|S_a - S_b| / |S_a|, the largest over tensors, in float64."""
    shifts = [(a[name].double() - base[name].double(), b[name].double() - base[name].double()) for name in base]
    return max(float((x - y).norm() / x.norm()) for x, y in shifts)


def same_bits(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(to_bytes(a[name]) == to_bytes(b[name]) for name in a)
