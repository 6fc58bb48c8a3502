"""Losses at labels and their gradients by hand, the output head at some labels at a time.

Logits over a vocabulary are the largest matrices of a pass, and autograd holds four of them for a loss. Here those of
`LABELS` labels are there at a time, whatever the batch; the rest of a pass ends with the references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from malmen_cli.language_models.heads import Head, wide

LABELS = 256
"""At a time: as many as make up for reading the head's weights once more, and as batches of 1,024 tokens have."""

AT_HAND = 32
"""Of these, how many at a time are made losses of on a CPU: what that takes stays in its caches, and in the heap, where
memory for all of them would be fresh from the system each time, which costs as much again."""

LossesOf = Callable[[slice, Tensor], tuple[Tensor, Tensor]]
"""Given some of a part's labels, counted from its first, and their logits (k, classes): losses (k,) in nats, and the
derivative of each by its own logits (k, classes), both at least float32."""

Losses = Callable[[slice], LossesOf]
"""Given a part of a batch's labels, those that the head is run for at once."""


def parts(labels: int) -> Iterator[slice]:
    """Some of a batch's labels at a time."""
    return _slices(labels, LABELS)


def _few(logits: Tensor) -> Iterator[slice]:
    """Some of a part's labels at a time, counted from its first: those that losses are made of at once."""
    return _slices(len(logits), AT_HAND if logits.device.type == "cpu" else LABELS)


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def cross_entropy(labels: Tensor) -> Losses:
    """-log p of a batch's labels (n,); by the logits, softmax less one-hot."""

    def losses(wanted: Tensor, some: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        logits, slopes, log_sum = _softmax(logits)
        at = torch.arange(len(logits), device=logits.device), wanted[some]
        nats = (logits.amax(1) - logits[at]) + log_sum
        slopes[at] -= 1
        return nats, slopes

    return lambda part: partial(losses, labels[part])


def divergence(head: Head, base: Tensor) -> Losses:
    """KL(p_base || p) of a batch's labels, whose references (n, width) at the base weights are given; by the logits,
    p less p_base."""

    def losses(at_base: Tensor, some: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        logits, slopes, log_sum = _softmax(logits)
        base_logits, probabilities, base_log_sum = _softmax(at_base[some])
        # Less the largest of each: what is likely is near 0 then, and exact.
        above = (base_logits - logits).sub_((base_logits.amax(1) - logits.amax(1))[:, None])
        nats = above.mul_(probabilities).sum(1) + log_sum - base_log_sum
        return nats, slopes.sub_(probabilities)

    return lambda part: partial(losses, head.logits_of(base[part]))


def saturated(losses: Tensor, q: float) -> Tensor:
    """(1 - e^(-q l)) / q per loss l in nats, at most 1 / q; l itself for q = 0.

    Of a cross-entropy -log p this is (1 - p^q) / q, the generalized cross-entropy (arXiv 1805.07836): what counts in
    the end is which answer is the likeliest, and a rephrase or an unrelated prompt that no editor of this kind can win,
    whose loss has no bound, would be paid for with all those that it can.
    """
    return losses if q == 0 else -torch.expm1(-q * losses) / q


@torch.no_grad()
def reference_grads(
    head: Head,
    references: Tensor,
    losses: Losses,
    counts: Tensor,
    *,
    coefficient: float = 1.0,
    saturation: float = 0.0,
    scale: float = 1.0,
) -> tuple[float, Tensor]:
    """L = coefficient * sum of l_i / count_i over a batch's saturated losses l_i, and scale * dL/d(references).

    Args:
        references: (n, width), as a head gives them of n labels. counts: (n,). saturation: q of `saturated`.
        scale: of gradients that would vanish otherwise.

    Returns:
        L, and a tensor of the shape and dtype of `references`.
    """
    totals, grads = [], torch.empty_like(references)
    for part in parts(len(references)):
        with torch.enable_grad():
            some = references[part].detach().requires_grad_()
            logits = head.logits_of(some)
        # In the place of the logits, of which no head has a use any more, unless they are the references themselves.
        slopes = torch.empty_like(logits) if logits is some else logits.detach()
        losses_of = losses(part)
        for few in _few(logits):
            nats, by_logits = losses_of(few, logits.detach()[few])
            n = counts[part][few]
            totals.append((saturated(nats, saturation) / n).sum())
            factors = coefficient * scale / n.to(nats.dtype)
            if saturation:
                factors *= (-saturation * nats).exp()
            slopes[few] = by_logits.mul_(factors[:, None])
        (grads[part],) = torch.autograd.grad(logits, some, slopes)
    return coefficient * float(torch.stack(totals).sum()), grads


def likeliest(head: Head, references: Tensor) -> list[int]:
    """The class that each of a batch's labels would be by its reference (n, width); of equals the first."""
    return [label for part in parts(len(references)) for label in _likeliest(head.logits_of(references[part]))]


def likeliest_and_nats(head: Head, references: Tensor, labels: Tensor) -> tuple[list[int], Tensor]:
    """`likeliest`, and -log p (n,) of a batch's labels (n,), in at least float32; the head sees each label once."""
    chosen, nats = [], []
    for part in parts(len(references)):
        logits = head.logits_of(references[part])
        for few in _few(logits):
            some = wide(logits[few])
            chosen += _likeliest(some)
            nats.append(nn.functional.cross_entropy(some, labels[part][few], reduction="none"))
    return chosen, torch.cat(nats)


def _likeliest(logits: Tensor) -> list[int]:
    # max, since argmax takes twice as long on a CPU (torch 2.13).
    return logits.max(1).indices.tolist()


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (k, classes) in at least float32, their softmax, and log sum e^(logits - the largest) of each row (k,).

    -log p of a class is the largest less its logit, and the last: as exact as `log_softmax`, which would take as long
    again for what is not wanted, and several times as long where it widens its argument itself (torch 2.13, CPU).
    """
    logits = wide(logits)
    probabilities = logits.softmax(1)
    return logits, probabilities, -probabilities.amax(1).log()
