"""The hyper-network: from a fact's keys and value gradients to pseudo keys and pseudo value gradients."""

from __future__ import annotations

import torch
from torch import nn

from malmen_cli.editing.shapes import Float, Tensor


class Block(nn.Module):
    """x <- x + s_l * relu(x A B + b) + t_l, with A and B of low rank shared, s and t per layer.

    A ~ N(0, 1) and B = 0, so that the start is the identity (MALMEN, arXiv 2311.04661, appendix B).
    """

    def __init__(self, width: int, rank: int, layers: int, generator: torch.Generator) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(width, rank, generator=generator))
        self.B = nn.Parameter(torch.zeros(rank, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.ones(layers, width))
        self.shift = nn.Parameter(torch.zeros(layers, width))

    def forward(self, x: Float[Tensor, "n width"], layer: int) -> Float[Tensor, "n width"]:
        # clamp, not relu: at the start every x A B + b is exactly 0, where relu's gradient is 0 and clamp's is 1.
        hidden = (x @ self.A @ self.B + self.bias).clamp(min=0)
        return x + self.scale[layer] * hidden + self.shift[layer]


class HyperNetwork(nn.Module):
    """Blocks over normalised `[u; g]` rows, one network for all edited layers of one shape.

    Args:
        d_in, d_out: the layers' shape. layers: how many share the network. rank: of each block's A B.
        blocks: how many. generator: seeds A.
    """

    def __init__(
        self, d_in: int, d_out: int, *, layers: int, rank: int, blocks: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.d_in, self.d_out = d_in, d_out
        self.blocks = nn.ModuleList(Block(d_in + d_out, rank, layers, generator) for _ in range(blocks))

    def forward(
        self, normalized: Float[Tensor, "n width"], layer: int
    ) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]:
        """Pseudo keys u~ (n, d_in) and pseudo value gradients g~ (n, d_out) of the `layer`-th layer of this shape."""
        for block in self.blocks:
            normalized = block(normalized, layer)
        pseudo_keys, pseudo_value_grads = normalized.split([self.d_in, self.d_out], dim=1)
        return pseudo_keys, pseudo_value_grads
