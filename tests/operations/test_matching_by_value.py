"""Edited layers and the files' tensors are matched by value: renamed loads work, fused and equal ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from family_models import save_family_model
from safetensors.torch import load_file, save_file
from safetensors_folders import file_digests
from tiny_models import make_facts, save_tiny_model, world_of

from malmen_cli.checkpoint.manifest import read_manifest
from malmen_cli.errors import UnsupportedModel
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.operations.layers import layers_of
from malmen_cli.operations.matching import match_tensor
from malmen_cli.operations.models import load_base


def change(folder: Path, new: dict[str, torch.Tensor]) -> None:
    save_file(new, folder / "model.safetensors", {"format": "pt"})


def test_tensors_that_transformers_renames_on_loading_are_found_and_edited(tmp_path: Path) -> None:
    """Gemma 3's published files have other names than transformers 5 gives the modules."""
    folder = save_family_model(tmp_path / "model", "gemma3")
    old = ("model.language_model.", "language_model.model.")
    change(folder, {name.replace(*old): tensor for name, tensor in load_file(folder / "model.safetensors").items()})
    before = file_digests(folder)
    world = world_of(folder)
    with world.ledger() as (_, model):
        layers = layers_of(model.architecture)
    assert layers and all(layer.name.startswith(old[0]) and layer.tensor.startswith(old[1]) for layer in layers)
    world.apply(*make_facts(3))
    assert file_digests(folder) != before
    world.revert("HEAD")
    assert file_digests(folder) == before


def test_a_tensor_that_no_file_holds_as_it_is_loaded_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", "llama")
    model = LanguageModel(folder)
    manifest = read_manifest(folder)
    layer = model.layers[0]
    with torch.no_grad():
        layer.module.weight[0, 0] += 1
    with pytest.raises(UnsupportedModel, match=f"0 tensors of the files hold the weight of {layer.name}"):
        match_tensor(manifest, layer)


def test_files_wider_than_the_configuration_asks_for_are_matched(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", "llama")
    config = folder / "config.json"
    config.write_text(config.read_text("utf-8").replace('"float32"', '"bfloat16"'), "utf-8")
    before = file_digests(folder)
    world = world_of(folder)
    with world.ledger() as (ledger, model):
        assert model.architecture["dtype"] == "F32"
        assert load_base(ledger, model, layers_of(model.architecture)).dtype == torch.bfloat16
    world.apply(*make_facts(3))
    world.revert("HEAD")
    assert file_digests(folder) == before


def test_of_equal_tensors_the_one_of_the_layers_own_name_counts(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", "llama")
    tensors = load_file(folder / "model.safetensors")
    names = [f"model.layers.{i}.mlp.down_proj.weight" for i in (1, 2)]
    change(folder, {**tensors, names[1]: tensors[names[0]].clone()})
    model = LanguageModel(folder)
    assert [match_tensor(read_manifest(folder), layer).tensor for layer in model.layers] == names
