"""The blocks below the first edited layer: the same before and after any edit, so that a text needs them only once.

A pass ends at the first edited block (`reach`), or starts there from the hidden states that an earlier one left
(`resumed`). Embeddings, masks and positions are made anew in every pass: they cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from malmen_cli.language_models.edited_layers import EditedLayer
from malmen_cli.language_models.texts import Batch

STATES = "hidden_states"


class LowerBlocks:
    """Of a stack's list of blocks, those before the first edited one.

    Args:
        skipped: the blocks below, one at least. entry: the first edited block, which reads their hidden states.
    """

    def __init__(self, skipped: Sequence[nn.Module], entry: nn.Module) -> None:
        self.skipped, self._entry = skipped, entry

    @torch.no_grad()
    def can_be_left_out(self, batch: Batch, forward: Callable[[], Tensor], width: int) -> bool:
        """Whether a pass that starts at the first edited block gives what a whole one does, tried on one batch.

        Args:
            batch: of tokens that differ, with states that differ. forward: logits of the batch.
            width: of a hidden state; some models hand on several for each token, and there is no room for those.
        """
        try:
            reached = self.reach(forward)
            if reached.shape != (*batch.input_ids.shape, width):
                return False
            with self.resumed(batch.padded(batch.packed(reached))):
                found = forward()
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return False  # what the blocks hand on is not, or not only, hidden states
        whole = forward()
        if not whole.isfinite().all():
            return False  # nothing can be told from such logits
        return torch.allclose(found, whole, rtol=1e-4, atol=1e-5 * float(whole.abs().max()))

    def reach(self, forward: Callable[[], object]) -> Tensor:
        """Run a forward pass up to the first edited block; the (b, t, width) hidden states that it would have read."""
        with self._at_entry(_stop):
            try:
                forward()
            except _Reached as reached:
                return reached.states
        raise RuntimeError("the model never ran its first edited block")

    @contextmanager
    def recorded(self) -> Iterator[list[Tensor]]:
        """Within, a forward pass adds the hidden states (b, t, width) that the first edited block reads to a list."""
        found: list[Tensor] = []

        def note(states: Tensor) -> Tensor:
            found.append(states.detach())
            return states

        with self._at_entry(note):
            yield found

    @contextmanager
    def resumed(self, states: Tensor) -> Iterator[None]:
        """Within, a forward pass starts from these hidden states (b, t, width) and runs no block below."""
        # A block of a model on several devices has a forward of its own, beside its class's.
        own = [block.__dict__.get("forward") for block in self.skipped]
        for block in self.skipped:
            block.forward = _pass_on
        try:
            with self._at_entry(lambda _: states):
                yield
        finally:
            for block, forward in zip(self.skipped, own, strict=True):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward

    @contextmanager
    def _at_entry(self, see: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Within, the first edited block reads what `see` makes of its hidden states."""

        def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (see(args[0]), *args[1:]), named
            return args, {**named, STATES: see(named[STATES])}

        handle = self._entry.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


class _Reached(Exception):
    """Ends a pass at the first edited block."""

    def __init__(self, states: Tensor) -> None:
        self.states = states


def _stop(states: Tensor) -> Tensor:
    raise _Reached(states)


def _pass_on(hidden_states: Tensor, *_: object, **__: object) -> Tensor:
    return hidden_states


def lower_blocks(model: nn.Module, layers: Sequence[EditedLayer]) -> LowerBlocks | None:
    """The blocks below the first edited layer; None where all edited layers are not in one list of blocks, or where the
    first block is edited.

    Whether a model's blocks hand on just one tensor of hidden states is not asked here: `can_be_left_out` tries it.
    """
    places = [place_in_blocks(model, layer.name) for layer in layers]
    lists = {id(blocks) for blocks, _ in places}
    blocks, _ = places[0]
    first = min(index for _, index in places)
    if len(lists) > 1 or blocks is None or first == 0:
        return None
    return LowerBlocks(list(blocks)[:first], blocks[first])


def place_in_blocks(model: nn.Module, name: str) -> tuple[nn.ModuleList | None, int]:
    """The outermost list of blocks that a module lies in, and which of them."""
    module: nn.Module = model
    for part in name.split("."):
        if isinstance(module, nn.ModuleList):
            return module, int(part)
        module = getattr(module, part)
    return None, 0
