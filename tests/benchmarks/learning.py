"""Training a small model from nothing: batches of like length, Adam, a rate that rises and falls."""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST = 0.02  # root mean square that a parameter counts with at least: biases start at zero
POOL = 16  # batches drawn at random and then sorted by length, so that little is padded


def learn(
    model: nn.Module,
    lengths: Sequence[int],
    loss: Callable[[list[int]], Tensor],
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    seed: int,
) -> float:
    """Train all weights of a model in place; return the seconds it took.

    Steps are relative to the root mean square of each parameter at the start, as in Adafactor (arXiv 1804.04235), for
    T5's embeddings are sixty times as large as its queries. They rise over the first twentieth of the run and fall to
    nothing along a cosine.

    Args:
        lengths: tokens per example. loss: mean loss of the examples with these indices.
        epochs: passes over the examples. batch: examples per step. learning_rate: a step as a share of that size.
    """
    began = time.monotonic()
    rng = random.Random(seed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": [parameter], "size": _size(parameter)} for parameter in parameters]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98), fused=True)
    total, step = epochs * math.ceil(len(lengths) / batch), 0
    model.train()
    for epoch in range(epochs):
        sum_of_losses = 0.0
        for chosen in _batches(lengths, batch, rng):
            rate = min(1.0, 20 * (step + 1) / total) * 0.5 * (1 + math.cos(math.pi * step / total))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * rate * group["size"]
            optimizer.zero_grad()
            value = loss(chosen)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            sum_of_losses += value.item() * len(chosen)
            step += 1
        told = f"epoch {epoch + 1} of {epochs}: loss {sum_of_losses / len(lengths):.4f}"
        print(f"{told}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    model.eval()
    return time.monotonic() - began


def padded(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    """Rows of token ids as one tensor, padded on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows])


def save(model: Any, tokenizer: Any, folder: Any) -> None:
    """Save both as `save_pretrained` writes them, without its progress bar."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _batches(lengths: Sequence[int], batch: int, rng: random.Random) -> list[list[int]]:
    order = rng.sample(range(len(lengths)), len(lengths))
    found = []
    for start in range(0, len(order), POOL * batch):
        pool = sorted(order[start : start + POOL * batch], key=lengths.__getitem__)
        found += [pool[i : i + batch] for i in range(0, len(pool), batch)]
    rng.shuffle(found)
    return found


def _size(parameter: Tensor) -> float:
    return max(SMALLEST, parameter.detach().square().mean().sqrt().item())
