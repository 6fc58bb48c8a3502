"""The arithmetic of a model's passes, counted from its modules alone: no weight is read, nothing is run.

What is counted are the linear layers. Attention's own products, norms and activations are not: a rate that was measured
on a whole block (`block_rates.py`) has them in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from malmen_cli.language_models.edited_layers import EditedLayer, is_plain_linear
from malmen_cli.language_models.families import Stack
from malmen_cli.language_models.last_mlp import last_mlp
from malmen_cli.language_models.lower_blocks import lower_blocks
from malmen_cli.language_models.texts import Batch


@dataclass(frozen=True)
class Arithmetic:
    """Weights of a model's linear layers, each of which is one multiply-add per token that the layer sees.

    Attributes:
        below: per stack, up to the first edited layer and with it: what is run, and never differentiated.
        above: per stack, after it: run, and differentiated where rows are captured.
        head: of the output embeddings and of the last MLP, where they see the supervised tokens alone.
        kept_out: per stack, of `below`, those of whole blocks, which a pass that starts from kept hidden states leaves
            out. Whether the model's blocks allow it is known of a loaded one only (`LanguageModel.lower`).
    """

    below: dict[Stack, int]
    above: dict[Stack, int]
    head: int
    kept_out: dict[Stack, int] = field(default_factory=lambda: {"encoder": 0, "answer": 0})


@dataclass(frozen=True)
class Passes:
    """Some texts in batches.

    Attributes:
        texts: how many. batches: into how many batches they go. encoder, answer: padded tokens that each stack reads; a
            model of one stack has an answering one. labels: supervised tokens. encoded: an encoder's, without padding.
    """

    texts: int = 0
    batches: int = 0
    encoder: int = 0
    answer: int = 0
    labels: int = 0
    encoded: int = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def times(self, factor: float) -> Passes:
        """As many times the texts; of a part of some texts, all of them."""
        return Passes(*(round(getattr(self, name) * factor) for name in self.__dataclass_fields__))

    def tokens(self, stack: Stack) -> int:
        return self.encoder if stack == "encoder" else self.answer


def arithmetic_of(model: nn.Module, layers: Sequence[EditedLayer]) -> Arithmetic:
    """Of a model, which may be without memory, and the layers of it that are edited."""
    edited = {layer.name for layer in layers}
    head: Any = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    encoder = set(model.get_encoder().modules()) if _has_encoder(model) else set[nn.Module]()  # type: ignore[operator]
    below: dict[Stack, int] = {"encoder": 0, "answer": 0}
    above: dict[Stack, int] = {"encoder": 0, "answer": 0}
    head_size = 0 if head is None else head.weight.numel()
    mlp = last_mlp(model, str(model.config.model_type))  # type: ignore[union-attr]
    narrow = set[nn.Module]() if mlp is None else set(mlp.modules())
    lower = lower_blocks(model, layers) if not (encoder and any(x.stack == "answer" for x in layers)) else None
    kept = {module for block in lower.skipped for module in block.modules()} if lower else set[nn.Module]()
    kept_out: dict[Stack, int] = {"encoder": 0, "answer": 0}
    reached = False
    for name, module in model.named_modules():
        if module is head or not is_plain_linear(module):
            continue
        weight: Any = module.weight
        if module in narrow:
            head_size += weight.numel()
            continue
        stack: Stack = "encoder" if module in encoder else "answer"
        (above if reached else below)[stack] += weight.numel()
        kept_out[stack] += weight.numel() if module in kept else 0
        reached = reached or name in edited
    return Arithmetic(below, above, head_size, kept_out)


def passes(batches: Iterable[Batch]) -> Passes:
    """What batches hold."""
    total = Passes()
    for batch in batches:
        decoded = batch.decoder_input_ids
        read = batch.input_ids.numel()
        total += Passes(
            texts=len(batch.rows),
            batches=1,
            encoder=0 if decoded is None else read,
            answer=read if decoded is None else decoded.numel(),
            labels=len(batch.labels),
            encoded=0 if decoded is None else sum(batch.lengths),
        )
    return total


def _has_encoder(model: nn.Module) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))


@dataclass(frozen=True)
class BlockRates:
    """How fast a device runs a model, as one or two of its own blocks showed.

    A pass over t tokens takes `t * 2 * weights / flops + item * weights / bytes` seconds: the first part grows with the
    batch, the second is there however small the batch is.

    Attributes:
        flops: two per multiply-add, forward, per second. backward: the same of a backward pass to a block's inputs.
        bytes: of weights, per second. item: bytes of a weight.
    """

    flops: float
    backward: float
    bytes: float
    item: int

    def seconds(self, model: Arithmetic, work: Passes, *, differentiated: bool = False, resumed: bool = False) -> float:
        """Seconds of running some batches: with the gradients that a capture takes where `differentiated`, from kept
        hidden states on where `resumed`."""
        stacks: tuple[Stack, ...] = ("encoder", "answer")
        run = {stack: model.below[stack] + model.above[stack] for stack in stacks}
        if resumed:
            run = {stack: run[stack] - model.kept_out[stack] for stack in stacks}
        forward = sum(work.tokens(stack) * run[stack] for stack in stacks) + work.labels * model.head
        read = sum(run.values()) + model.head
        seconds = 2 * forward / self.flops + work.batches * self.item * read / self.bytes
        if differentiated:
            back = sum(work.tokens(stack) * model.above[stack] for stack in stacks) + work.labels * model.head
            weights = sum(model.above.values()) + model.head
            seconds += 2 * back / self.backward + work.batches * self.item * weights / self.bytes
        return seconds
