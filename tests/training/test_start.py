"""Layers whose rows give training nothing to start from are refused by name, with what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from meta_training import training_config
from tiny_models import CITIES, load, make_fact, save_tiny_model

from malmen_cli.errors import UnsupportedModel
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.training.loop import Watcher, train
from malmen_cli.training.rows import split_rows

DOWN, UP, GATE = (f"model.layers.2.mlp.{kind}_proj" for kind in ("down", "up", "gate"))


def refusal(model: LanguageModel, folder: Path, **editor: Any) -> tuple[UnsupportedModel, int]:
    """What training says, and how many prompts it had captured by then."""
    config, captured = training_config(steps=1, editor=editor), [0]
    # Targets of one token each, so that each fact's one row is its prompt's last token.
    facts = [make_fact(index, CITIES[index % 4]) for index in range(12)]
    split = split_rows(facts, model.tokenizing, share=config.held_out, largest=400, seed=0)
    with pytest.raises(UnsupportedModel) as refused:
        train(model, split, config, folder, watcher=Watcher(capturing=lambda done, _: captured.append(done)))
    assert "--layers" in str(refused.value.remedy)
    return refused.value, max(captured)


def zeroed(folder: Path, name: str) -> LanguageModel:
    model = load(save_tiny_model(folder / "model", "llama"), float64=False)
    torch.nn.init.zeros_(model.model.get_submodule(name).weight)
    return model


def test_a_weight_of_0_is_refused_before_anything_is_captured(tmp_path: Path) -> None:
    error, captured = refusal(zeroed(tmp_path, DOWN), tmp_path / "run")
    assert error.message == f"the weight of {DOWN} is 0 throughout"
    assert captured == 0 and not (tmp_path / "run").exists()


def test_a_weight_of_0_is_trained_from_a_step_size_of_ones_own(tmp_path: Path) -> None:
    model = zeroed(tmp_path, DOWN)
    config = training_config(steps=1, editor={"initial_step_size": 0.01})
    facts = [make_fact(index) for index in range(12)]
    split = split_rows(facts, model.tokenizing, share=config.held_out, largest=400, seed=0)
    trained = train(model, split, config, tmp_path / "run")
    assert all(torch.isfinite(tensor).all() for tensor in trained.editor.tensors().values())


@pytest.mark.parametrize(
    ("editor", "words"), [({}, "puts out nothing"), ({"initial_step_size": 0.01}, "reads nothing")]
)
def test_keys_of_0_are_refused(tmp_path: Path, editor: dict[str, float], words: str) -> None:
    error, _ = refusal(zeroed(tmp_path, GATE), tmp_path / "run", **editor)
    assert error.message.startswith(f"{DOWN} {words} at the facts' rows")


def test_keys_that_are_the_same_for_all_facts_are_refused(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj"  # it reads the embedding of a prompt's last token, and nothing else
    model = load(save_tiny_model(tmp_path / "model", "llama"), float64=False, layers=[name])
    error, _ = refusal(model, tmp_path / "run")
    assert error.message.startswith(f"{name} has the same keys or value gradients for all facts")


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = load(save_tiny_model(tmp_path / "model", "llama"), float64=False)
    torch.nn.init.constant_(model.model.get_submodule(UP).weight, 3e38)
    error, _ = refusal(model, tmp_path / "run")
    # The block below, whose gradients come through this one, is asked first.
    assert error.message.startswith("model.layers.1.mlp.down_proj puts out or gets numbers that are not finite")
