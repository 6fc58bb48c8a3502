"""The residual stream of a causal model after its last edited block: read it, and go on from it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from malmen_cli.editing.capture import capturing
from malmen_cli.errors import UnsupportedModel, UsageError
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.lower_blocks import LowerBlocks, place_in_blocks
from malmen_cli.language_models.texts import Batch, Tokens

ALIKE = 0.05
"""How far, as a share of it, what a layer puts out may be from what it adds to the stream: the rounding of 16 bits."""


class ResidualStream:
    """What the last edited block hands on, at any token.

    MEMIT needs two things of a model: that its blocks hand on hidden states and nothing else, and that what an edited
    layer puts out is added to them as it is. Both are tried out here, on one small text.

    Attributes:
        after: the blocks up to the last edited one, left out when a pass goes on from what they handed on.

    Raises:
        UnsupportedModel: not causal, or one of the two is not so. UsageError: the last block is edited.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        if model.task != "causal":
            raise UnsupportedModel(
                f"memit edits causal models, and this is one of {model.task}", remedy="Use --method ft or locft-bf."
            )
        places = [place_in_blocks(model.model, layer.name) for layer in model.layers]
        blocks = places[0][0]
        if blocks is None or any(other is not blocks for other, _ in places):
            raise UnsupportedModel("the edited layers are not in one list of blocks", remedy="Name others: `layers`.")
        last = max(index for _, index in places)
        if last + 1 == len(blocks):
            raise UsageError(
                "memit cannot edit the last block: what is said there of a subject, nothing reads any more",
                remedy="Name earlier layers in the settings: `layers`.",
            )
        self.after = LowerBlocks(list(blocks)[: last + 1], blocks[last + 1])
        self._require_usable(blocks, [index for _, index in places])

    def read(self, texts: Sequence[Tokens], layers: Sequence[int], batch_tokens: int) -> tuple[list[Tensor], Tensor]:
        """At the last token that each text reads: keys (n, d_in) of some of the edited layers, and the stream (n, d).

        Args:
            layers: places in `model.layers`. batch_tokens: padded tokens that the model runs at once.
        """
        modules = [self.model.layers[i].module for i in layers]
        keys: list[list[Tensor]] = [[torch.empty(0)] * len(texts) for _ in layers]
        outputs = [torch.empty(0)] * len(texts)
        for batch in self.model.batches(texts, batch_tokens):
            with capturing(modules, gradients=False) as capture:
                states = self.after.reach(partial(self.model.head.references, batch))
            ends = [length - 1 for length in batch.lengths]
            for place, (row, end) in enumerate(zip(batch.rows, ends, strict=True)):
                # Copies: a view would keep all of its batch.
                outputs[row] = states[place, end].to(self.model.device, copy=True)
                for kept, found in zip(keys, capture.keys, strict=True):
                    kept[row] = found.view(*states.shape[:2], -1)[place, end].to(self.model.device, copy=True)
        return [torch.stack(rows) for rows in keys], torch.stack(outputs)

    def states(self, texts: Sequence[Tokens], batch_tokens: int) -> list[Tensor]:
        """Per text the stream (tokens, d) at all its tokens."""
        found = [torch.empty(0)] * len(texts)
        with torch.no_grad():
            for batch in self.model.batches(texts, batch_tokens):
                states = self.after.reach(partial(self.model.head.references, batch))
                for place, (row, length) in enumerate(zip(batch.rows, batch.lengths, strict=True)):
                    found[row] = states[place, :length].to(self.model.device)
        return found

    def logits(self, batch: Batch, states: Tensor) -> Tensor:
        """Logits (n, vocabulary) at the positions that predict labels, of a pass that goes on from states (b, t, d)."""
        with self.after.resumed(states):
            return self.model.logits(batch)

    @torch.no_grad()
    def _require_usable(self, blocks: nn.ModuleList, places: Sequence[int]) -> None:
        length = min(8, self.model.tokenizing.limit or 8)
        [batch] = self.model.batches([Tokens(self.model.trial_tokens(length), (0,))], length)
        forward, width = partial(self.model.head.references, batch), self.model.lower_width
        if not self.after.can_be_left_out(batch, lambda: self.model.logits(batch), width):
            raise UnsupportedModel(
                f"blocks of a model of type '{self.model.model_type}' hand on more than hidden states",
                remedy="Use another method.",
            )
        for layer, index in zip(self.model.layers, places, strict=True):
            outside = LowerBlocks([], blocks[index + 1])
            before = outside.reach(forward)
            step = torch.zeros_like(before)
            generator = torch.Generator().manual_seed(0)
            step[:, -1] = torch.randn(step.shape[-1], generator=generator).to(step) * before[:, -1].std()
            add = partial(_plus, step)
            handle = layer.module.register_forward_hook(add)
            try:
                moved = outside.reach(forward) - before
            except RuntimeError:
                moved = torch.zeros_like(step)  # it puts out something of another shape
            finally:
                handle.remove()
            if not float((moved - step).float().norm()) <= ALIKE * float(step.float().norm()):
                raise UnsupportedModel(
                    f"what {layer.name} puts out is not added to the hidden states as it is",
                    remedy="memit edits MLP down-projections that nothing follows in their block; use another method.",
                )


def _plus(step: Tensor, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + step.view_as(output).to(output.device)
