"""MEND: the sum of outer products, its gradients by hand, its rows at all tokens that a loss reaches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from safetensors_folders import file_digests
from tiny_models import TINY_TRAINING, World, load, make_facts, make_world, save_tiny_model
from torch import Tensor

from malmen_cli.editing.editor import LayerShape
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.ledger import verify_ledger
from malmen_cli.methods.mend import MendEditor

LAYERS = (LayerShape("h.0", 7, 4), LayerShape("h.1", 7, 4))


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moved() -> MendEditor:
    """In float64, with every parameter away from its start."""
    editor = MendEditor(LAYERS, rank=3, blocks=2)
    for layer, normalizer in enumerate(editor.normalizers):
        normalizer.update(torch.cat([normal(20, 7, seed=layer), normal(20, 4, seed=9 + layer)], dim=1))
    with torch.no_grad():
        for i, parameter in enumerate(editor.parameters()):
            parameter.add_(0.2 * normal(*parameter.shape, seed=50 + i).float())
    editor.freeze_normalizers()
    return editor


def written_out(editor: MendEditor, named: dict[str, Tensor], layer: int, u: Tensor, g: Tensor) -> Tensor:
    """S row by row, from the formula alone."""
    z = (torch.cat([u, g], dim=1) - editor.normalizers[layer].mean) / editor.normalizers[layer].variance.sqrt()
    for block in range(2):
        a, b, bias, scale, shift = (
            named[f"networks.7x4.blocks.{block}.{name}"] for name in ("A", "B", "bias", "scale", "shift")
        )
        z = z + scale[layer] * torch.relu(z @ a @ b + bias) + shift[layer]
    total = z.new_zeros(7, 4)
    for row in z:
        total = total - named["raw_step_size"][layer].exp() * torch.outer(row[:7], row[7:])
    return total


def test_the_shift_and_its_gradients_are_those_of_the_formula() -> None:
    editor = moved()
    for layer in range(2):
        u, g, wanted_of = normal(15, 7, seed=70), normal(15, 4, seed=71), normal(7, 4, seed=72)
        named = {name: p.detach().double().requires_grad_() for name, p in editor.named_parameters()}
        shift = written_out(editor, named, layer, u, g)
        (shift * wanted_of).sum().backward()
        with torch.no_grad():
            equation = editor.equation(layer, repeated=True)
            for part in (slice(0, 4), slice(4, 15)):
                equation.update(*editor.rows(layer, u[part], g[part]))
        solution = editor.solve(layer, equation)
        assert float((solution.param_shift - shift.detach()).norm()) <= 1e-5 * float(shift.detach().norm())
        editor.zero_grad()
        pulled = editor.pull_back(layer, solution, u, wanted_of)
        for part in (slice(0, 9), slice(9, 15)):
            pulled(part, *editor.rows(layer, u[part], g[part])).backward()
        for name, parameter in editor.named_parameters():
            wanted = named[name].grad
            if wanted is None:
                assert parameter.grad is None or not parameter.grad.any(), name
            else:
                assert parameter.grad is not None
                assert float((parameter.grad - wanted).norm()) <= 1e-4 * max(float(wanted.norm()), 1e-6), name


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bert"])
def test_rows_are_those_of_all_tokens_that_the_loss_reaches(tmp_path: Path, family: str) -> None:
    model: LanguageModel = load(save_tiny_model(tmp_path / "model", family))  # type: ignore[arg-type]
    tokens = model.tokenizing
    if model.task == "classification":
        texts = [tokens("Paris lies in France.", "REFUTES"), tokens("Rome is large", "SUPPORTS")]
    else:
        texts = [tokens(fact.prompt, fact.target) for fact in make_facts(3)]
    spread = model.spread()
    assert any(spread) and not model.spread(False)[0]
    [(batch, rows)] = model.capture(texts, batch_tokens=1 << 20, everywhere=True)
    for layer, wide, grads, counts in zip(model.layers, spread, rows.value_grads, rows.counts, strict=True):
        assert counts == [texts[place].rows(layer.stack, wide) for place in batch.rows]
        assert len(grads) == sum(counts)
        if layer.stack == "answer":
            assert bool((grads.abs().amax(1) > 0).all())  # and no padding among them
    # What is captured at the labels alone is among it, and every text's rows are its own.
    [(_, alone)] = model.capture([texts[batch.rows[0]]], everywhere=True)
    for layer in range(len(model.layers)):
        own = rows.value_grads[layer][: rows.counts[layer][0]]
        assert float((own - alone.value_grads[layer]).norm()) <= 1e-9 * max(float(own.norm()), 1e-12)


@pytest.fixture(params=["float32", "bfloat16"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    training = TINY_TRAINING.model_copy(update={"method": "mend"})
    return make_world(tmp_path / "first", dtype=request.param, training=training)


def test_it_is_trained_and_applied_in_any_order_and_taken_back(world: World) -> None:
    base, a, b = file_digests(world.checkpoint), make_facts(3), make_facts(4, 100)
    world.apply(*a)
    world.apply(*b)
    both = file_digests(world.checkpoint)["model.safetensors"]
    done = world.revert("#2")
    assert done.solved and not done.anew
    only_b = load_file(world.checkpoint / "model.safetensors")
    world.revert("#3")
    assert file_digests(world.checkpoint) == base
    world.apply(*b)
    for name, tensor in load_file(world.checkpoint / "model.safetensors").items():
        assert torch.equal(tensor, only_b[name]), name
    world.apply(*a)
    assert file_digests(world.checkpoint)["model.safetensors"] == both
    with world.ledger() as (ledger, _):
        assert verify_ledger(ledger).problems == []
