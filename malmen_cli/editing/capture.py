"""Keys and value gradients of a frozen model at chosen positions, without any weight gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from malmen_cli.editing.shapes import Tensor


class Capture:
    """What passes through some linear modules during one forward pass.

    Gradients end at the output of the module that runs first, so nothing below it is differentiated.

    Attributes:
        keys: one (batch, tokens, d_in) tensor per module. leaves: per module zeros (batch, tokens, d_out), without
        memory, that stand for what is added to its output.
        calls: how often each module ran; of several times the last is kept.
        All in the order the modules were named in, whatever order they run in.
    """

    def __init__(self, modules: int, *, gradients: bool) -> None:
        self.keys: list[Tensor] = [torch.empty(0)] * modules
        self.leaves: list[Tensor] = [torch.empty(0)] * (modules if gradients else 0)
        self.calls = [0] * modules
        self._gradients = gradients

    def record(self, place: int, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A forward hook of the module at `place`."""
        self.calls[place] += 1
        self.keys[place] = args[0].detach()
        if not self._gradients:
            return output
        self.leaves[place] = output.new_zeros(()).expand(output.shape).requires_grad_()
        added: Tensor = _Added.apply(output, self.leaves[place])
        return added

    def value_grads(self, loss: Tensor, slopes: Tensor | None = None) -> list[Tensor]:
        """dL/d(output) of every module, each (batch, tokens, d_out); frees the graph.

        Args:
            loss: L, or with `slopes` what it is taken of. slopes: dL/d(loss), of the same shape.
        """
        return list(torch.autograd.grad(loss, self.leaves, slopes))


class _Added(torch.autograd.Function):
    """output + leaf, of a leaf that is 0: no number is touched, and dL/d(leaf) is dL/d(output) of the module.

    The output itself cannot be that leaf: some models go on to change it in place (Llama 4 adds to a shared expert's),
    which autograd refuses of a leaf, and after which another tensor's gradient would be its.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, leaf: Tensor) -> Tensor:
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], grads[0]


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
