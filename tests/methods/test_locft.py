"""LocFT-BF against a straightforward loop: one matrix, every epoch over all facts in a new order, in mini-batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import load, make_facts, save_tiny_model
from torch.nn import functional

from malmen_cli.editing.editor import LayerShape
from malmen_cli.methods.locft import LocFT
from malmen_cli.methods.settings import LocFTSettings

LAYER = "transformer.h.1.mlp.c_proj"


def straightforward(
    folder: Path, texts: list[tuple[tuple[int, ...], tuple[int, ...]]], s: LocFTSettings
) -> torch.Tensor:
    """S (d_in, d_out), float64, by torch's Adam on the transformers model's own parameter."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    weight = model.get_submodule(LAYER).weight
    base = weight.detach().clone()
    rate = s.learning_rate or s.relative_rate * float(weight.detach().square().mean().sqrt())
    optimizer = torch.optim.Adam([weight], lr=rate)
    generator = torch.Generator().manual_seed(s.seed)
    for _ in range(s.epochs):
        order = torch.randperm(len(texts), generator=generator).tolist()
        losses = []
        for start in range(0, len(texts), s.batch_facts):
            batch = [texts[i] for i in order[start : start + s.batch_facts]]
            each = []
            for ids, labels in batch:
                logits = model(input_ids=torch.tensor([ids])).logits[0, -len(labels) :]
                each.append(functional.cross_entropy(logits, torch.tensor(labels)))
            loss = torch.stack(each).mean()
            losses += [float(loss.detach())] * len(batch)
            if losses[-1] >= s.small_loss:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        if sum(losses) / len(losses) < s.small_loss:
            break
    return weight.detach() - base


@pytest.mark.parametrize(("small_loss", "rate"), [(0.0, 1e-2), (2.5, 1e-2), (4.0, None)])
def test_order_and_result_are_those_of_a_plain_loop(tmp_path: Path, small_loss: float, rate: float | None) -> None:
    folder = save_tiny_model(tmp_path / "model")
    model = load(folder, layers=[LAYER])
    facts = make_facts(5)
    texts = [model.tokenizing(fact.prompt, fact.target) for fact in facts]
    settings = LocFTSettings(
        epochs=6, batch_facts=2, learning_rate=rate, small_loss=small_loss, seed=3, batch_tokens=30
    )
    [shift] = LocFT(settings, model.shapes).shifts(model, facts)
    wanted = straightforward(folder, [(text.input_ids, text.labels) for text in texts], settings)
    assert wanted.abs().max() > 0.005
    assert float((shift - wanted).norm() / wanted.norm()) <= 1e-6


def test_it_stops_when_the_facts_are_learnt(tmp_path: Path) -> None:
    model = load(save_tiny_model(tmp_path / "model"), float64=False, layers=[LAYER])
    told: list[int] = []
    settings = LocFTSettings(epochs=200, batch_facts=4, learning_rate=3e-2, small_loss=2.6)
    LocFT(settings, model.shapes).shifts(model, make_facts(1), progress=lambda what, done, total: told.append(done))
    assert 1 < told[-1] < 200
    told.clear()
    [shift] = LocFT(settings.model_copy(update={"small_loss": 1e3}), model.shapes).shifts(
        model, make_facts(2), progress=lambda what, done, total: told.append(done)
    )
    assert told == [2] and not shift.any()  # learnt before it began


def test_the_seed_decides_the_order(tmp_path: Path) -> None:
    model = load(save_tiny_model(tmp_path / "model"), layers=[LAYER])
    settings = [LocFTSettings(epochs=2, batch_facts=2, seed=seed) for seed in (0, 0, 1)]
    [one], [same], [other] = (LocFT(s, model.shapes).shifts(model, make_facts(5)) for s in settings)
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize(("depth", "picked"), [(0.0, "a"), (1.0, "f"), (0.7, "e"), (0.4, "c")])
def test_one_layer_is_picked_by_its_depth(depth: float, picked: str) -> None:
    shapes = [LayerShape(name, 8, 4) for name in "abcdef"]
    assert [x.name for x in LocFT.pick(LocFTSettings(depth=depth), shapes)] == [picked]
    assert LocFT.pick(LocFTSettings(depth=depth), shapes[:1]) == shapes[:1]
