"""A model of which some blocks are kept elsewhere, to be copied in for each pass, does what the whole one does.

No GPU is needed: blocks left on the disk are run on the CPU by the same hooks that run on a GPU what is in CPU memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from family_models import FAMILIES, save_family_model
from tiny_models import TINY_TRAINING, fact_set, make_claims, make_facts, save_tiny_model

from malmen_cli.errors import UnsupportedModel
from malmen_cli.facts import Fact
from malmen_cli.language_models.edited_layers import edited_layers
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.loading import empty_model, read_config
from malmen_cli.language_models.placement import Placement, Unit, units_of
from malmen_cli.training.loop import train
from malmen_cli.training.rows import split_rows


def units(folder: Path) -> list[Unit]:
    config = read_config(folder)
    model = empty_model(folder, config)
    edited = {layer.name for layer in edited_layers(model, config.model_type, None)}
    return units_of(model, edited, torch.float32)


def offloaded(folder: Path) -> LanguageModel:
    """The model with all that is movable on the disk."""
    places = {name: "disk" if unit.movable else "cpu" for unit in units(folder) for name in unit.modules}
    assert "disk" in places.values()
    return LanguageModel(folder, device=Placement("cpu", places))


def facts_of(task: str) -> list[Fact]:
    return make_claims(24) if task == "classification" else make_facts(24)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_gives_the_same_rows_logits_and_answers(family: str, tmp_path: Path) -> None:
    folder = save_family_model(tmp_path / "model", family)
    whole, parted = LanguageModel(folder), offloaded(folder)
    assert any(parameter.is_meta for parameter in parted.model.parameters())
    assert not any(layer.weight.is_meta for layer in parted.layers)
    facts = facts_of(whole.task)[:6]
    texts = [whole.tokenizing(fact.prompt, fact.target) for fact in facts]
    for (_, one), (_, other) in zip(whole.capture(texts), parted.capture(texts), strict=True):
        for a, b in zip([*one.keys, *one.value_grads], [*other.keys, *other.value_grads], strict=True):
            assert torch.equal(a, b)
    assert whole.predictions(texts) == parted.predictions(texts)
    parted.require_usable()
    prompts = [fact.prompt for fact in facts]
    assert whole.generate(prompts, 3) == parted.generate(prompts, 3)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bert"])
def test_training_ends_in_the_same_editor_and_leaves_the_weights(family: str, tmp_path: Path) -> None:
    folder = save_family_model(tmp_path / "model", family)
    trained = []
    loaders: list[Callable[[Path], LanguageModel]] = [LanguageModel, offloaded]
    for number, load in enumerate(loaders):
        model = load(folder)
        before = model.weights()
        split = split_rows(facts_of(model.task), model.tokenizing, share=0.2, largest=8, seed=0)
        trained.append(train(model, split, TINY_TRAINING, tmp_path / str(number)).editor.tensors())
        assert all(torch.equal(a, b) for a, b in zip(before, model.weights(), strict=True))
    assert trained[0].keys() == trained[1].keys()
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_edited_weights_are_put_in_and_answer_as_those_of_the_whole_model(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", "llama")
    whole, parted = LanguageModel(folder), offloaded(folder)
    texts = [whole.tokenizing(fact.prompt, fact.target) for fact in fact_set(make_facts(8))]
    batches = [next(iter(model.batches(texts, 1024))) for model in (whole, parted)]
    base = whole.logits(batches[0])
    for model in (whole, parted):
        model.overlay({layer.name: 2 * model.parameter(layer.name) for layer in model.layers})
    assert not torch.equal(whole.logits(batches[0]), base)
    assert torch.equal(whole.logits(batches[0]), parted.logits(batches[1]))


def test_a_weight_without_memory_is_never_written_to(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", "llama")
    parted = offloaded(folder)
    [first] = [unit.modules[0] for unit in units(folder) if unit.movable and "layers.0" in unit.modules[0]]
    name = f"{first}.mlp.down_proj"
    assert parted.parameter(name).is_meta
    with pytest.raises(UnsupportedModel, match="must be changed"):
        parted.overlay({name: torch.zeros(parted.parameter(name).shape)})
    places = {path: "disk" for unit in units(folder) for path in unit.modules}
    with pytest.raises(UnsupportedModel, match="must be changed"):
        LanguageModel(folder, device=Placement("cpu", places))
