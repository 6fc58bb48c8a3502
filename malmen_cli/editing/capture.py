"""Keys and value gradients of a frozen model at chosen positions, without any weight gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from malmen_cli.editing.shapes import Tensor


class Capture:
    """What passes through some linear modules during one forward pass.

    The first module's output is made the leaf that gradients start from, so nothing below it is differentiated.

    Attributes:
        keys: one (batch, tokens, d_in) tensor per module. outputs: one (batch, tokens, d_out) tensor per module.
    """

    def __init__(self, *, gradients: bool) -> None:
        self.keys: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self._gradients = gradients

    def _record(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self.keys.append(args[0].detach())
        if self._gradients:
            if not output.requires_grad:
                output = output.requires_grad_(True)
            self.outputs.append(output)
        return output

    def value_grads(self, loss: Tensor) -> list[Tensor]:
        """dL/d(output) of every module, each (batch, tokens, d_out); frees the graph."""
        return list(torch.autograd.grad(loss, self.outputs))


@contextmanager
def capturing(modules: Sequence[nn.Module], *, gradients: bool = True) -> Iterator[Capture]:
    """Record one forward pass through `modules` (in the order they run); hooks are gone afterwards, whatever happens.

    Args:
        modules: linear modules of a model whose parameters do not require gradients.
        gradients: also keep the outputs, to differentiate a loss with respect to them.
    """
    capture = Capture(gradients=gradients)
    handles = [module.register_forward_hook(capture._record) for module in modules]
    try:
        with torch.set_grad_enabled(gradients):
            yield capture
    finally:
        for handle in handles:
            handle.remove()
