"""FT: its gradients and its first step against autograd on the transformers model itself, and what a run leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import AUTO_CLASSES, FAMILIES, save_family_model
from tiny_models import Fact, load, make_claims, make_facts, save_tiny_model
from torch.nn import functional

from malmen_cli.errors import NumericalFailure
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.texts import Tokens
from malmen_cli.methods import fine_tuning
from malmen_cli.methods.fine_tuning import FineTuning, loss_and_gradients
from malmen_cli.methods.settings import FineTuningSettings

NAMES = ["gpt2", "llama", "t5", "bert"]


def facts_of(name: str, count: int = 5) -> list[Fact]:
    return (make_claims if FAMILIES[name].task == "classification" else make_facts)(count)


def independent_gradients(folder: Path, name: str, layers: list[str], texts: list[Tokens]) -> list[torch.Tensor]:
    """dL/dW (d_in, d_out) in float64 of the mean over texts, each run by itself through the model's own forward."""
    import transformers

    task = FAMILIES[name].task
    model = getattr(transformers, AUTO_CLASSES[task]).from_pretrained(folder, dtype=torch.float64).eval()
    for text in texts:
        ids = torch.tensor([text.input_ids])
        if task == "sequence-to-sequence":
            loss = model(input_ids=ids, labels=torch.tensor([text.labels])).loss
        elif task == "classification":
            said = torch.tensor([text.labels], dtype=torch.float64)
            loss = functional.binary_cross_entropy_with_logits(model(input_ids=ids).logits, said)
        else:
            logits = model(input_ids=ids).logits[0, -len(text.labels) :]
            loss = functional.cross_entropy(logits, torch.tensor(text.labels))
        (loss / len(texts)).backward()
    grads = [model.get_submodule(layer).weight.grad for layer in layers]
    return [grad if name == "gpt2" else grad.T for grad in grads]  # Conv1D holds (d_in, d_out), Linear (d_out, d_in)


@pytest.fixture
def family(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, Path, LanguageModel]:
    name: str = request.param
    folder = save_family_model(tmp_path / "model", name)
    return name, folder, load(folder)


@pytest.mark.parametrize("family", NAMES, indirect=True)
def test_the_first_step_is_adamw_on_the_gradients_of_autograd(family: tuple[str, Path, LanguageModel]) -> None:
    name, folder, model = family
    facts = facts_of(name)
    texts = [model.tokenizing(fact.prompt, fact.target) for fact in facts]
    wanted = independent_gradients(folder, name, [layer.name for layer in model.layers], texts)
    _, found = loss_and_gradients(model, texts, batch_tokens=40)  # in several batches
    for own, other in zip(found, wanted, strict=True):
        assert float((own - other).norm() / other.norm()) <= 1e-10
    settings = FineTuningSettings(epochs=1, batch_facts=8, learning_rate=1e-2, weight_decay=0.5)
    before = model.weights()
    shifts = FineTuning(settings, model.shapes).shifts(model, facts)
    for shift, weight, grad in zip(shifts, before, wanted, strict=True):
        # Of Adam's first step the moments' bias is all there is: m / sqrt(v) is g / |g|.
        step = -1e-2 * (0.5 * weight + grad / (grad.abs() + 1e-8))
        assert shift.dtype == torch.float32
        assert float((shift - step).norm() / step.norm()) <= 1e-6


def test_a_relative_rate_alone_takes_the_place_of_the_learning_rate(tmp_path: Path) -> None:
    model = load(save_tiny_model(tmp_path / "model"))

    def shifts(**settings: float) -> list[torch.Tensor]:
        parsed = FineTuningSettings.model_validate({"epochs": 1, "weight_decay": 0, "batch_facts": 8, **settings})
        return FineTuning(parsed, model.shapes).shifts(model, make_facts(3))

    for one, ten in zip(shifts(relative_rate=1e-4), shifts(relative_rate=1e-3), strict=True):
        assert float((10 * one - ten).norm() / ten.norm()) <= 1e-5  # Adam's first step is as large as the rate
    kept = FineTuningSettings.model_validate(FineTuningSettings().model_dump())
    assert kept.learning_rate == 5e-4  # as editors of before have both


def test_hidden_states_that_are_kept_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(save_tiny_model(tmp_path / "model"))
    method = FineTuning(FineTuningSettings(epochs=2, batch_facts=2, learning_rate=1e-2), model.shapes)
    assert model.lower is not None
    with_kept = method.shifts(model, make_facts(5))
    monkeypatch.setattr(fine_tuning, "KEPT_STATES", 0)
    for kept, whole in zip(with_kept, method.shifts(model, make_facts(5)), strict=True):
        assert float((kept - whole).norm() / whole.norm()) <= 1e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_same_facts_give_the_same_bits_and_leave_the_model_as_it_was(tmp_path: Path, dtype: str) -> None:
    folder = save_tiny_model(tmp_path / "model", dtype=dtype)
    model = load(folder, float64=False)
    before = model.weights()
    method = FineTuning(FineTuningSettings(batch_facts=2, learning_rate=1e-3), model.shapes)
    first, again = method.shifts(model, make_facts(5)), method.shifts(model, make_facts(5))
    other = method.shifts(load(folder, float64=False), make_facts(5))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, again, other, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, model.weights(), strict=True))


def test_steps_too_small_for_16_bits_add_up(tmp_path: Path) -> None:
    model = load(save_tiny_model(tmp_path / "model", dtype="bfloat16"), float64=False)
    settings = FineTuningSettings(epochs=4, batch_facts=8, learning_rate=1e-6, weight_decay=0)
    shifts = FineTuning(settings, model.shapes).shifts(model, make_facts(4))
    for shift, weight in zip(shifts, model.weights(), strict=True):
        large = weight.abs() > 0.01
        assert torch.equal((weight.float() + shift / 4)[large].bfloat16(), weight[large])  # one step alone is lost
        assert float(shift.abs().median()) > 3e-6


def test_it_learns_the_facts(tmp_path: Path) -> None:
    model = load(save_tiny_model(tmp_path / "model"), float64=False)
    facts = make_facts(3)
    texts = [model.tokenizing(fact.prompt, fact.target) for fact in facts]
    settings = FineTuningSettings(epochs=80, batch_facts=3, learning_rate=1e-2)
    shifts = FineTuning(settings, model.shapes).shifts(model, facts)
    wanted = [list(text.labels) for text in texts]
    assert model.predictions(texts) != wanted  # a control
    model.set_weights([weight + shift for weight, shift in zip(model.weights(), shifts, strict=True)])
    assert model.predictions(texts) == wanted


def test_a_run_that_diverges_is_refused_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = load(save_tiny_model(tmp_path / "model", dtype="float16"), float64=False)
    before = model.weights()
    settings = FineTuningSettings(learning_rate=1e3, weight_decay=1e3)
    with pytest.raises(NumericalFailure, match="diverged in epoch"):
        FineTuning(settings, model.shapes).shifts(model, make_facts(3))
    assert all(torch.equal(a, b) for a, b in zip(before, model.weights(), strict=True))


def test_no_facts_are_no_shift(tmp_path: Path) -> None:
    model: Any = load(save_tiny_model(tmp_path / "model"))
    assert all(not shift.any() for shift in FineTuning(FineTuningSettings(), model.shapes).shifts(model, []))
