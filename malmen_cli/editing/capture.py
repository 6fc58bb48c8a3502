"""Keys and value gradients of a frozen model at chosen positions, without any weight gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from malmen_cli.editing.shapes import Tensor


class Capture:
    """What passes through some linear modules during one forward pass.

    The output of the module that runs first is made the leaf that gradients start from, so nothing below it is
    differentiated.

    Attributes:
        keys: one (batch, tokens, d_in) tensor per module. outputs: one (batch, tokens, d_out) tensor per module.
        calls: how often each module ran; of several times the last is kept.
        All in the order the modules were named in, whatever order they run in.
    """

    def __init__(self, modules: int, *, gradients: bool) -> None:
        self.keys: list[Tensor] = [torch.empty(0)] * modules
        self.outputs: list[Tensor] = [torch.empty(0)] * (modules if gradients else 0)
        self.calls = [0] * modules
        self._gradients = gradients

    def record(self, place: int, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook of the module at `place`."""
        self.calls[place] += 1
        self.keys[place] = args[0].detach()
        if self._gradients:
            self.outputs[place] = output if output.requires_grad else output.requires_grad_(True)
        return self.outputs[place] if self._gradients else output

    def value_grads(self, loss: Tensor, slopes: Tensor | None = None) -> list[Tensor]:
        """dL/d(output) of every module, each (batch, tokens, d_out); frees the graph.

        Args:
            loss: L, or with `slopes` what it is taken of. slopes: dL/d(loss), of the same shape.
        """
        return list(torch.autograd.grad(loss, self.outputs, slopes))


@contextmanager
def capturing(modules: Sequence[nn.Module], *, gradients: bool = True) -> Iterator[Capture]:
    """Record one forward pass through `modules`; hooks are gone afterwards, whatever happens.

    Args:
        modules: linear modules of a model whose parameters do not require gradients.
        gradients: also keep the outputs, to differentiate a loss with respect to them.
    """
    capture = Capture(len(modules), gradients=gradients)
    handles = [module.register_forward_hook(partial(capture.record, place)) for place, module in enumerate(modules)]
    try:
        with torch.set_grad_enabled(gradients):
            yield capture
    finally:
        for handle in handles:
            handle.remove()
