"""The last block's MLP, run at some positions only: what it adds elsewhere, nothing reads."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from malmen_cli.language_models.families import BY_TYPE


def last_mlp(model: nn.Module, model_type: str) -> nn.Module | None:
    """The MLP of the block that the answer comes out of; None of families whose MLP is no module of its own."""
    family = BY_TYPE.get(model_type)
    if family is None or not family.mlp_apart:
        return None
    glob = family.edited[-1].rpartition(".")[0]
    mlps = [module for name, module in model.named_modules() if fnmatch.fnmatchcase(name, glob)]
    return mlps[-1] if mlps else None


@contextmanager
def narrowed(mlp: nn.Module, positions: Tensor) -> Iterator[None]:
    """Within, `mlp` sees and answers some positions of its (b, t, width) input, and 0 stands for its other answers.

    Args:
        positions: (n,) flat indices into b * t.
    """
    shape: list[tuple[int, ...]] = []

    def narrow(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shape.append(tuple(args[0].shape))
        return (args[0].flatten(0, 1)[positions.to(args[0].device)][None], *args[1:])

    def widen(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        batch, tokens, _width = shape.pop()
        whole = output.new_zeros(batch * tokens, output.shape[-1])
        return whole.index_copy(0, positions.to(output.device), output[0]).view(batch, tokens, -1)

    handles = [mlp.register_forward_pre_hook(narrow), mlp.register_forward_hook(widen)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
