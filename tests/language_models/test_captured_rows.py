"""Keys and value gradients of the frozen model equal those of plain autograd, one unpadded text at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import Family, load, make_facts
from torch import Tensor, nn

from malmen_cli.language_models import texts
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.tokenizing import Tokens

FAMILIES: list[Family] = ["gpt2", "llama"]
GRADIENT_TOLERANCE = 1e-10  # of the norm


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny_folder: Callable[..., Path]) -> LanguageModel:
    return load(tiny_folder(request.param))


@pytest.fixture(autouse=True)
def batches_of_unlike_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short texts and the long one go together where there is room, with as much padding as that takes."""
    monkeypatch.setattr(texts, "PER_BATCH", 10_000)


def some_texts(model: LanguageModel) -> list[Tokens]:
    """Targets of one token and of several, and one text far longer than the rest."""
    texts = [model.tokenizing(fact.prompt, fact.target) for fact in make_facts(7)]
    long = "The city from which one rules the land goes by the name of Rome, the main language of which is"
    return [*texts, model.tokenizing(long, "Latin")]


def by_autograd(model: LanguageModel, text: Tokens) -> list[tuple[Tensor, Tensor]]:
    """(u, g) per layer from a plain forward and backward of one text, every parameter requiring gradients."""
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        output.retain_grad()
        seen.append((args[0], output))

    handles = [layer.module.register_forward_hook(keep) for layer in model.layers]
    model.model.requires_grad_(True)
    logits = model.model(input_ids=torch.tensor([text.input_ids])).logits[0]
    nn.functional.cross_entropy(logits[-text.supervised :], torch.tensor(text.labels)).backward()
    model.model.zero_grad(set_to_none=True)
    model.model.requires_grad_(False)
    for handle in handles:
        handle.remove()
    return [(u[0, -text.supervised :].detach(), o.grad[0, -text.supervised :]) for u, o in seen if o.grad is not None]


def captured(model: LanguageModel, texts: list[Tokens], batch_tokens: int) -> list[list[tuple[Tensor, Tensor]]]:
    """Per text and layer (u, g), in the order of the texts."""
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in texts]
    for batch, rows in model.capture(texts, batch_tokens=batch_tokens):
        assert rows.counts == [[texts[row].supervised for row in batch.rows]] * len(model.layers)
        parts = [
            zip(u.split(counts), g.split(counts), strict=True)
            for u, g, counts in zip(rows.keys, rows.value_grads, rows.counts, strict=True)
        ]
        for row, layers in zip(batch.rows, zip(*parts, strict=True), strict=True):
            found[row] = list(layers)
    return found


class TestCapturedRows:
    # One text per batch; several of unlike length with a ragged last batch; all in one.
    @pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
    def test_equal_plain_autograd_whatever_the_batch(self, model: LanguageModel, batch_tokens: int) -> None:
        texts = some_texts(model)
        for text, layers in zip(texts, captured(model, texts, batch_tokens), strict=True):
            for (u, g), (u_plain, g_plain) in zip(layers, by_autograd(model, text), strict=True):
                assert u.dtype == g.dtype == torch.float64
                assert u.shape == (text.supervised, 32)
                assert g.shape == (text.supervised, 16)
                assert float((u - u_plain).norm()) <= 1e-12 * float(u_plain.norm())
                assert float((g - g_plain).norm()) <= GRADIENT_TOLERANCE * float(g_plain.norm())

    def test_of_one_fact_equal_plain_autograd(self, model: LanguageModel) -> None:
        text = some_texts(model)[4]
        [layers] = captured(model, [text], 1024)
        for (_, g), (_, g_plain) in zip(layers, by_autograd(model, text), strict=True):
            assert float((g - g_plain).norm()) <= GRADIENT_TOLERANCE * float(g_plain.norm())

    def test_come_without_gradients_where_only_keys_are_asked_for(self, model: LanguageModel) -> None:
        texts = some_texts(model)
        [(_, with_grads)] = model.capture(texts, batch_tokens=10_000)
        [(_, keys_only)] = model.capture(texts, gradients=False, batch_tokens=10_000)
        assert keys_only.value_grads == []
        assert all(map(torch.equal, keys_only.keys, with_grads.keys))
        [(_, reference, _)] = model.capture_reference(texts, batch_tokens=10_000)
        assert all(map(torch.equal, reference.keys, with_grads.keys))

    def test_leave_no_weight_a_gradient(self, model: LanguageModel) -> None:
        before = {name: p.clone() for name, p in model.model.named_parameters()}
        list(model.capture(some_texts(model)))
        for name, parameter in model.model.named_parameters():
            assert parameter.grad is None
            assert not parameter.requires_grad
            assert torch.equal(parameter, before[name])


def hooks_on(model: LanguageModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())


class TestHooks:
    def test_are_gone_after_an_exception(self, model: LanguageModel) -> None:
        outside_the_vocabulary = Tokens((5, 10**6), (7,))
        with pytest.raises(IndexError):
            list(model.capture([outside_the_vocabulary]))
        assert hooks_on(model) == 0

    def test_are_gone_between_batches(self, model: LanguageModel) -> None:
        for _ in model.capture(some_texts(model), batch_tokens=1):
            assert hooks_on(model) == 0
