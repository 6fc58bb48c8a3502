"""How fast this machine runs a model: one block of its own architecture, with random weights, timed for a second.

A matrix product alone would tell too much: beside it a block has attention, norms and activations, which take a larger
share the narrower the model is, and a call of each that costs the same for few tokens as for none.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch

from malmen_cli.language_models.arithmetic import BlockRates
from malmen_cli.language_models.edited_layers import is_plain_linear
from malmen_cli.language_models.loading import auto_class, fuse_activations
from malmen_cli.language_models.texts import tokens_at_once

FEW = 4
"""Tokens of the small batch, which shows what a pass costs however little it reads."""

WORK, ENOUGH = 6e9, 64
"""Floating-point operations of the large batch, which keeps the whole below a second; and tokens that it has at least,
however large the block is."""

VOCABULARY = 64

_LAYERS = ("num_hidden_layers", "num_layers", "num_decoder_layers", "encoder_layers", "decoder_layers")


def block_rates(
    config: Any, dtype: torch.dtype, device: torch.device, *, batch_tokens: int | None = None, length: int = 16
) -> BlockRates:
    """Run one block (of an encoder-decoder one of each stack) of a model, forward and backward.

    Args:
        length: tokens of a text.

    A model that cannot be made with one block is known by matrix products of its width instead, which is optimistic.
    """
    try:
        model = _one_block(config, dtype, device)
        weights = sum(m.weight.numel() for m in model.base_model.modules() if is_plain_linear(m))
        if not weights:
            raise ValueError("no linear layer")
        run: Callable[[int, int, bool], None] = _Runner(model, device)
    except Exception:  # whatever a stranger's configuration makes of it
        width = int(getattr(config.get_text_config(), "hidden_size", 0) or 1024)
        weights = 8 * width * width
        run = _Products(width, dtype, device)
    tokens = min(batch_tokens or tokens_at_once(dtype), max(ENOUGH, int(WORK / (2 * weights))))
    length = min(length, max(FEW, tokens // 2))
    texts = max(2, tokens // length)
    many = texts * length  # of an encoder-decoder in each stack, which runs its own half of the weights on them
    small = least(lambda: run(1, FEW, False), device, 5)
    large = least(lambda: run(texts, length, False), device, 2)
    back = least(lambda: run(texts, length, True), device, 2) - large
    per_token = max(large - small, 0.1 * large) / (many - FEW)
    once = max(small - FEW * per_token, 0.01 * small)
    flops = 2 * weights / per_token
    return BlockRates(
        flops=flops,
        backward=min(flops, 2 * weights * many / max(back, 1e-9)),
        bytes=dtype.itemsize * weights / once,
        item=dtype.itemsize,
    )


def _one_block(config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A model of one block per stack and hardly any vocabulary, of weights that keep numbers in range."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    for name in _LAYERS:
        for part in (config, text):
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, 1)
    for name in ("layer_types", "attention_types", "attention_layers"):
        if isinstance(getattr(text, name, None), list):
            setattr(text, name, getattr(text, name)[:1])
    for part in (config, text):
        part.vocab_size = VOCABULARY
        for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
            if hasattr(part, name):
                setattr(part, name, 0)
    with torch.device("meta"):
        model: Any = auto_class(config).from_config(config, trust_remote_code=False).to(dtype)
    # Only then given memory: drawing weights for hundreds of millions of numbers would take longer than running them.
    model = model.to_empty(device=device).eval().requires_grad_(False)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(0.01 if tensor.is_floating_point() else 0)
    fuse_activations(model)
    return model


class _Runner:
    def __init__(self, model: Any, device: torch.device) -> None:
        self._model, self._device = model, device
        self._decodes = bool(getattr(model.config, "is_encoder_decoder", False))

    def __call__(self, texts: int, length: int, backward: bool) -> None:
        ids = torch.zeros(texts, length, dtype=torch.long, device=self._device)
        inputs: dict[str, Any] = {"attention_mask": torch.ones_like(ids)}
        if self._decodes:
            inputs["decoder_input_ids"] = ids
        embed = self._model.get_input_embeddings()(ids).detach()
        with torch.set_grad_enabled(backward):
            if backward:
                embed.requires_grad_(True)
            out = self._model.base_model(inputs_embeds=embed, **inputs)[0]
            if backward:
                torch.autograd.grad(out.float().sum(), embed)


class _Products:
    """Two products with an inner width of four times the model's, as an MLP's are."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._up = torch.full((width, 4 * width), 0.01, dtype=dtype, device=device)
        self._down = torch.full((4 * width, width), 0.01, dtype=dtype, device=device)

    def __call__(self, texts: int, length: int, backward: bool) -> None:
        x = torch.ones(texts * length, len(self._up), dtype=self._up.dtype, device=self._up.device)
        for _ in range(2 if backward else 1):
            x = x @ self._up @ self._down


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds by which computing on a device is timed: of a CPU those that this thread has computed for, so that what
    else the machine does meanwhile is left out; of a GPU those that have passed."""
    return time.thread_time if device.type == "cpu" else time.perf_counter


def least(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of a call, the shortest of some repeats after one that is not counted."""
    clock = clock_of(device)
    best = float("inf")
    for repeat in range(repeats + 1):
        started = clock()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat:
            best = min(best, clock() - started)
    return max(best, 1e-9)
