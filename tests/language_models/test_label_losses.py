"""Losses at labels, the head at some at a time: values and gradients are those of autograd through all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import Family, load, make_facts
from torch import Tensor, nn
from torch.nn.functional import cross_entropy as dense_cross_entropy

from malmen_cli.evaluation.metrics import likelihoods
from malmen_cli.language_models import label_losses
from malmen_cli.language_models.heads import ClassHead, Head
from malmen_cli.language_models.label_losses import (
    Losses,
    cross_entropy,
    divergence,
    likeliest,
    likeliest_and_nats,
    parts,
    reference_grads,
)
from malmen_cli.language_models.language_model import LanguageModel

LABELS, WIDTH, CLASSES = 11, 6, 17


class Bent(Head):
    """A head whose logits are no linear function of its references."""

    width, dtype = WIDTH, torch.float64

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(WIDTH, CLASSES, dtype=torch.float64, generator=generator).to(dtype)
        self.seen: list[int] = []

    def logits_of(self, references: Tensor) -> Tensor:
        self.seen.append(len(references))
        return torch.tanh(references @ self.weight) * 3

    def references(self, batch: object) -> Tensor:
        raise NotImplementedError

    def forward(self, batch: object, stretch: float = 1.0) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def numbers(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


WANTED = torch.arange(LABELS) % CLASSES
COUNTS = torch.tensor([1, 2, 2, 3, 3, 3, 1, 4, 4, 4, 4])
BASE = numbers(LABELS, WIDTH, seed=3)


def dense(kind: str, head: Head, references: Tensor) -> Tensor:
    logits = head.logits_of(references)
    if kind == "cross-entropy":
        return dense_cross_entropy(logits, WANTED, reduction="none")
    base = head.logits_of(BASE).log_softmax(1)
    return (base.exp() * (base - logits.log_softmax(1))).sum(1)


def by_hand(kind: str, head: Head) -> Losses:
    return cross_entropy(WANTED) if kind == "cross-entropy" else divergence(head, BASE)


@pytest.mark.parametrize("at_hand", [1, 3, 1000])
@pytest.mark.parametrize("at_once", [1, 4, LABELS, 1000])
@pytest.mark.parametrize("saturation", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["cross-entropy", "divergence"])
def test_loss_and_gradient_are_those_of_autograd(
    monkeypatch: pytest.MonkeyPatch, kind: str, saturation: float, at_once: int, at_hand: int
) -> None:
    monkeypatch.setattr(label_losses, "LABELS", at_once)
    monkeypatch.setattr(label_losses, "AT_HAND", at_hand)
    head, references = Bent(), numbers(LABELS, WIDTH).requires_grad_()
    losses = dense(kind, head, references)
    if saturation:
        losses = (1 - torch.exp(-saturation * losses)) / saturation
    expected = 0.7 * (losses / COUNTS).sum()
    expected.backward()
    head.seen.clear()
    found, grads = reference_grads(
        head, references, by_hand(kind, head), COUNTS, coefficient=0.7, saturation=saturation, scale=8.0
    )
    assert abs(found - float(expected.detach())) < 1e-12
    assert references.grad is not None and torch.allclose(grads / 8, references.grad, rtol=1e-11, atol=1e-13)
    assert max(head.seen) <= at_once and sum(head.seen) == LABELS * (1 if kind == "cross-entropy" else 2)


def test_a_loss_that_no_float32_probability_could_say_is_right() -> None:
    logits = torch.zeros(1, CLASSES)
    logits[0, 0] = 200.0
    nats, slopes = cross_entropy(torch.tensor([1]))(slice(0, 1))(slice(0, 1), logits)
    assert float(nats) == 200.0
    assert slopes[0, :2].tolist() == [1.0, -1.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_of_a_model_of_16_bits_gradients_are_in_its_dtype_and_losses_in_float32(dtype: torch.dtype) -> None:
    head, references = Bent(dtype), numbers(LABELS, WIDTH).to(dtype)
    exact = Bent(torch.float64)
    exact.weight = head.weight.double()
    found, grads = reference_grads(head, references, cross_entropy(WANTED), COUNTS)
    expected, expected_grads = reference_grads(exact, references.double(), cross_entropy(WANTED), COUNTS)
    assert grads.dtype == dtype
    assert abs(found - expected) < 0.01 * expected
    assert float((grads.double() - expected_grads).norm()) < 0.02 * float(expected_grads.norm())


def test_nothing_is_lost_between_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    head, references = Bent(), numbers(LABELS, WIDTH)
    chosen, nats = likeliest_and_nats(head, references, WANTED)
    monkeypatch.setattr(label_losses, "LABELS", 3)
    monkeypatch.setattr(label_losses, "AT_HAND", 2)
    assert [part.stop - part.start for part in parts(LABELS)] == [3, 3, 3, 2]
    logits = head.logits_of(references)
    assert (
        likeliest(head, references)
        == likeliest_and_nats(head, references, WANTED)[0]
        == chosen
        == logits.argmax(1).tolist()
    )
    head.seen.clear()
    assert torch.allclose(likeliest_and_nats(head, references, WANTED)[1], nats, rtol=1e-12)
    assert sum(head.seen) == LABELS  # each once
    assert torch.allclose(nats, dense_cross_entropy(logits, WANTED, reduction="none"))


@pytest.mark.parametrize("classes", [1, 3])
def test_a_classifier_s_references_are_its_logits(classes: int) -> None:
    class Config:
        num_labels = classes

    model = nn.Linear(1, 1)
    model.config, model.dtype = Config(), torch.float64  # type: ignore[assignment]
    head = ClassHead(model)
    references, labels = numbers(4, classes).requires_grad_(), torch.tensor([0, 1, 1, 0])
    logits = references if classes > 1 else torch.cat([torch.zeros(4, 1, dtype=torch.float64), references], dim=1)
    dense_cross_entropy(logits, labels, reduction="sum").backward()
    before = references.detach().clone()
    _, grads = reference_grads(head, references, cross_entropy(labels), torch.ones(4))
    assert torch.equal(references, before)
    assert references.grad is not None and torch.allclose(grads, references.grad, rtol=1e-12)


def test_a_pass_to_references_runs_the_head_at_no_label(tiny_folder: Callable[..., Path]) -> None:
    model: LanguageModel = load(tiny_folder("gpt2"))
    [batch] = model.batches([model.tokenizing(fact.prompt, fact.target) for fact in make_facts(8)], 10_000)
    seen: list[int] = []
    handle = model.head.module.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[-2]))  # type: ignore[attr-defined]
    references = model.references(batch)
    assert seen == [0] and len(references) == len(batch.labels) > 1
    assert torch.equal(model.head.logits_of(references), model.head.forward(batch)[0])
    assert seen == [0, len(batch.labels), len(batch.labels)]
    handle.remove()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rows_answers_and_likelihoods_are_the_same_at_few_labels_at_a_time(
    tiny_folder: Callable[..., Path], family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(tiny_folder(family))
    texts = [model.tokenizing(fact.prompt, fact.target) for fact in make_facts(8)]

    def found() -> tuple[list[Tensor], list[list[int]], list[float]]:
        rows = [tensor for _, rows in model.capture(texts) for tensor in [*rows.keys, *rows.value_grads]]
        return rows, model.predictions(texts), likelihoods(model, texts)

    rows, answers, nats = found()
    monkeypatch.setattr(label_losses, "LABELS", 3)
    monkeypatch.setattr(label_losses, "AT_HAND", 2)
    few_rows, few_answers, few_nats = found()
    assert all(torch.allclose(few, all_of_them, rtol=1e-9) for few, all_of_them in zip(few_rows, rows, strict=True))
    assert few_answers == answers and few_nats == pytest.approx(nats, rel=1e-12)
