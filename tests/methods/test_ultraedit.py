"""UltraEdit's rows and shift are the formula's, of each fact alone; its calibration is exact and comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import load, make_facts, save_tiny_model
from torch import Tensor

from malmen_cli.errors import UnsafeFile, UsageError
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.texts import Tokens
from malmen_cli.methods import ultraedit
from malmen_cli.methods.settings import UltraEditSettings
from malmen_cli.methods.ultraedit import UltraEdit

FACTS = make_facts(9)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return load(save_tiny_model(tmp_path_factory.mktemp("ultraedit") / "model", "llama"))  # in float64


@pytest.fixture(scope="module")
def texts(model: LanguageModel) -> list[Tokens]:
    return [model.tokenizing(fact.prompt, fact.target) for fact in FACTS]


def calibrated(model: LanguageModel, texts: list[Tokens], **settings: object) -> UltraEdit:
    editor = UltraEdit(UltraEditSettings.model_validate(settings), model.shapes)
    editor.calibrate(model, texts, batch_tokens=64)
    return editor


def alone(model: LanguageModel, text: Tokens) -> list[tuple[Tensor, Tensor]]:
    """(u, g) of one text per layer by plain autograd: no capture, no batch."""
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    handles = []
    for place, layer in enumerate(model.layers):

        def hook(_: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor, place: int = place) -> Tensor:
            inputs[place] = args[0].detach()
            outputs[place] = output.detach().requires_grad_() if place == 0 else output
            outputs[place].retain_grad()
            return outputs[place]

        handles.append(layer.module.register_forward_hook(hook))
    ids = torch.tensor([text.input_ids])
    logits = model.model(input_ids=ids).logits[0, -len(text.labels) :]
    torch.nn.functional.cross_entropy(logits, torch.tensor(text.labels)).backward()
    for handle in handles:
        handle.remove()
    found = []
    for place in range(len(model.layers)):
        grad = outputs[place].grad
        assert grad is not None
        found.append((inputs[place][0, -len(text.labels) :], grad[0, -len(text.labels) :]))
    return found


@pytest.mark.parametrize("normalise", ["shape", "layer"])
def test_the_shift_is_the_papers_formula_one_fact_at_a_time(
    model: LanguageModel, texts: list[Tokens], normalise: str
) -> None:
    editor = calibrated(model, texts, normalise=normalise, step_size=1e-3, ridge=2.0)
    rows = [alone(model, text) for text in texts]
    whole = [torch.cat([torch.cat(row[layer], dim=1) for row in rows]) for layer in range(len(model.layers))]
    for layer, shape in enumerate(model.shapes):
        seen = (
            torch.cat([whole[i] for i, s in enumerate(model.shapes) if s.d_in == shape.d_in])
            if (normalise == "shape")
            else whole[layer]
        )
        mean, std = seen.mean(0), seen.var(0, correction=0).sqrt()
        gram = 2.0 * torch.eye(shape.d_in, dtype=torch.float64)
        moment = torch.zeros(shape.d_in, shape.d_out, dtype=torch.float64)
        for row in rows:  # one fact at a time, row by row
            for u, g in zip(*row[layer], strict=True):
                z = torch.where(std > 0, (torch.cat([u, g]) - mean) / std, 0)
                d = -1e-3 * (z[: shape.d_in] @ z[: shape.d_in]) * z[shape.d_in :]
                gram += torch.outer(u, u)
                moment += torch.outer(u, d)
        wanted = torch.linalg.inv(gram) @ moment
        equation = editor.equation(layer)
        for _, captured in model.capture(texts, batch_tokens=48):
            equation.update(*editor.rows(layer, captured.keys[layer], captured.value_grads[layer]))
        found = editor.solve(layer, equation).param_shift
        assert float((found - wanted).norm() / wanted.norm()) <= 1e-5  # rows are float32


def test_a_step_size_that_nobody_gave_makes_the_wanted_change_a_share_of_the_values(
    model: LanguageModel, texts: list[Tokens]
) -> None:
    editor = calibrated(model, texts, change=0.25)
    for layer, weight in enumerate(model.weights()):
        wanted, values = [], []
        for _, rows in model.capture(texts):
            u, d = editor.rows(layer, rows.keys[layer], rows.value_grads[layer])
            wanted.append(d.norm(dim=1))
            values.append((u @ weight).norm(dim=1))
        assert float(torch.cat(wanted).mean() / torch.cat(values).mean()) == pytest.approx(0.25, rel=1e-4)


def test_step_sizes_are_measured_on_rows_of_texts_of_every_length(
    model: LanguageModel, texts: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches come by length: the first rows are those of the shortest."""
    monkeypatch.setattr(ultraedit, "SAMPLE", 5)
    editor = calibrated(model, texts, change=0.25)
    [(_, rows)] = model.capture(texts, batch_tokens=1 << 20)
    for layer, weight in enumerate(model.weights()):
        stride = -(-len(rows.keys[layer]) // 5)
        assert stride > 1
        u, d = editor.rows(layer, rows.keys[layer][::stride], rows.value_grads[layer][::stride])
        assert float(d.norm(dim=1).mean() / (u @ weight).norm(dim=1).mean()) == pytest.approx(0.25, rel=1e-4)


def test_calibration_does_not_depend_on_batches(model: LanguageModel, texts: list[Tokens]) -> None:
    one, other = UltraEdit(UltraEditSettings(), model.shapes), UltraEdit(UltraEditSettings(), model.shapes)
    one.calibrate(model, texts, batch_tokens=16)
    other.calibrate(model, texts, batch_tokens=4096)
    for name, tensor in one.tensors().items():
        assert torch.allclose(tensor, other.tensors()[name], rtol=1e-6, atol=0), name


def test_rows_of_a_fact_owe_nothing_to_the_facts_beside_it(model: LanguageModel, texts: list[Tokens]) -> None:
    editor = calibrated(model, texts)
    [(batch, together)] = model.capture(texts, batch_tokens=1 << 20)
    for layer in range(len(model.layers)):
        beside = editor.rows(layer, together.keys[layer], together.value_grads[layer])[1]
        for place, found in zip(batch.rows, beside.split(together.counts[layer]), strict=True):
            [(_, own)] = model.capture([texts[place]])
            by_itself = editor.rows(layer, own.keys[layer], own.value_grads[layer])[1]
            assert float((found - by_itself).norm()) <= 1e-5 * float(by_itself.norm())


def test_tensors_come_back_and_strange_ones_are_refused(model: LanguageModel, texts: list[Tokens]) -> None:
    editor = calibrated(model, texts)
    again = UltraEdit(UltraEditSettings(), model.shapes)
    again.load_tensors(editor.tensors())
    [(_, rows)] = model.capture(texts, batch_tokens=1 << 20)
    for layer in range(len(model.layers)):
        captured = rows.keys[layer], rows.value_grads[layer]
        assert torch.equal(again.rows(layer, *captured)[1], editor.rows(layer, *captured)[1])
    for name, tensor in editor.tensors().items():
        wrong = editor.tensors() | {name: tensor.to(torch.float16)}
        with pytest.raises(UnsafeFile, match=name.replace(".", r"\.")):
            UltraEdit(UltraEditSettings(), model.shapes).load_tensors(wrong)
        with pytest.raises(UnsafeFile, match="missing"):
            UltraEdit(UltraEditSettings(), model.shapes).load_tensors(
                {other: value for other, value in editor.tensors().items() if other != name}
            )


def test_too_few_rows_are_refused_in_words(model: LanguageModel, tmp_path: Path) -> None:
    text = model.tokenizing("The capital of Bababa is", "Paris")
    one_row = Tokens(text.input_ids, text.labels[:1])
    with pytest.raises(UsageError, match="so few or so alike"):
        calibrated(model, [one_row])
