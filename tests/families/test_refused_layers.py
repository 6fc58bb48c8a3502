"""Layers that cannot be edited are refused in words before a byte is written; others are, where `--layers` says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from family_journey import tensors, written
from family_models import save_family_model
from program import run_here
from safetensors_folders import file_digests
from tiny_models import TINY_TRAINING, World, fact_set, load, make_facts, write_facts

from malmen_cli.errors import ExitCode, UnsupportedModel
from malmen_cli.language_models.edited_layers import edited_layers
from malmen_cli.ledger import Ledger, create_workspace
from malmen_cli.operations.models import register
from malmen_cli.operations.train import train_editor

REFUSED = [  # model, --layers, what is said
    ("mixtral", [], "mixtral.*finds no MLP down-projection"),
    ("mixtral", ["model.layers.*.mlp.experts"], "MixtralExperts.*no plain 2-D weight"),
    ("mixtral", ["model.layers.*.mlp.gate"], "no plain 2-D weight"),
    ("qwen3_moe", [], "qwen3_moe.*finds no MLP down-projection"),
    ("llama", ["lm_head"], "output head"),
    ("llama", ["model.embed_tokens"], "Embedding.*no plain 2-D weight"),
    ("llama", ["model.layers.0.mlp"], "no plain 2-D weight"),
    ("llama", ["model.norm"], "no plain 2-D weight"),
    ("llama", ["model.layers.*.mlp.down_proj", "model.layers.9.mlp.down_proj"], r"no module.*layers\.9"),
    ("gpt2", ["lm_head"], "tied to that of transformer.wte"),
    ("gpt2", ["transformer.wpe"], "Embedding.*no plain 2-D weight"),
    ("t5", ["lm_head"], "tied to that of"),
    ("t5_gated", ["lm_head"], "output head"),
    ("t5_gated", ["encoder.block.0.layer.0.SelfAttention.relative_attention_bias"], "Embedding.*no plain 2-D weight"),
    ("bart", ["lm_head"], "tied to that of"),
    ("bert", ["classifier"], "not run once on every token|output head"),
    ("bert", ["bert.pooler.dense"], "not run once on every token"),
    ("roberta", ["classifier.*"], "not run once on every token|output head|no plain 2-D weight"),
    ("gemma3", ["model.vision_tower.*.fc2"], "not run"),
]


@pytest.mark.parametrize(("name", "layers", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_it_is_refused_and_nothing_is_written(
    name: str, layers: list[str], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_family_model(tmp_path / "model", name)
    workspace = create_workspace(tmp_path).root
    run_here(capfd, "models", "list", "--workspace", workspace)
    before = written(tmp_path)
    flags = [word for glob in layers for word in ("--layers", glob)]
    status, out, err = run_here(capfd, "models", "add", name, folder, *flags, "--workspace", workspace)
    assert status == ExitCode.USAGE
    assert out == ""
    assert re.search(words, " ".join(err.split())), err
    assert written(tmp_path) == before


def test_quantised_weights_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = save_family_model(tmp_path / "model", "qwen3")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}), "utf-8")
    workspace = create_workspace(tmp_path).root
    status, out, err = run_here(capfd, "models", "add", "qwen", folder, "--workspace", workspace)
    assert (status, out) == (ExitCode.USAGE, "")
    assert "quantised weights cannot be edited" in err
    assert "Use the unquantised checkpoint." in err


PROJECTION = "model.layers.2.mlp.down_proj"


def test_a_parametrised_layer_is_refused(tmp_path: Path) -> None:
    model = load(save_family_model(tmp_path / "model", "llama")).model
    torch.nn.utils.parametrizations.weight_norm(model.get_submodule(PROJECTION))
    with pytest.raises(UnsupportedModel, match="parametrised"):
        edited_layers(model, "llama", None)


@pytest.mark.parametrize("how", ["one parameter", "one module"])
def test_a_layer_that_shares_its_weight_is_refused(tmp_path: Path, how: str) -> None:
    model = load(save_family_model(tmp_path / "model", "llama")).model
    first, last = model.model.layers[0].mlp, model.model.layers[2].mlp
    if how == "one parameter":
        first.down_proj.weight = last.down_proj.weight
    else:
        first.down_proj = last.down_proj
    with pytest.raises(UnsupportedModel, match=r"is tied to that of model\.layers\.[02]\.mlp\.down_proj"):
        edited_layers(model, "llama", [PROJECTION] if how == "one parameter" else ["model.layers.0.mlp.down_proj"])


CHOSEN = {  # model -> --layers, and what they are
    "qwen3": (
        ["model.layers.0.mlp.*_proj", "model.layers.2.self_attn.o_proj"],
        [*(f"model.layers.0.mlp.{kind}_proj" for kind in ("gate", "up", "down")), "model.layers.2.self_attn.o_proj"],
    ),
    "gpt2": (
        ["transformer.h.[12].mlp.c_*"],
        [f"transformer.h.{n}.mlp.{x}" for n in (1, 2) for x in ("c_fc", "c_proj")],
    ),
    "phi3": (["model.layers.1.mlp.gate_up_proj"], ["model.layers.1.mlp.gate_up_proj"]),
    "bart": (["model.decoder.layers.*.fc1"], [f"model.decoder.layers.{n}.fc1" for n in range(3)]),
    "t5_gated": (
        ["encoder.block.2.*.wo", "decoder.block.0.*.wi_1"],
        ["encoder.block.2.layer.1.DenseReluDense.wo", "decoder.block.0.layer.2.DenseReluDense.wi_1"],
    ),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_layers_that_are_named_by_globs_are_those_that_are_edited(tmp_path: Path, name: str) -> None:
    globs, paths = CHOSEN[name]
    folder = save_family_model(tmp_path / "model", name)
    base, digests = tensors(folder), file_digests(folder)
    world = World(create_workspace(tmp_path), folder)
    with Ledger.open(world.workspace, writing=True) as ledger:
        model = register(ledger, "tiny", folder, layers=globs).model
        train_editor(ledger, model, fact_set(make_facts(24, start=4000)), TINY_TRAINING)
    assert [layer["name"] for layer in model.architecture["layers"]] == paths
    world.apply(*make_facts(3))
    edited = tensors(folder)
    assert {name for name in base if base[name] != edited[name]} == {f"{path}.weight" for path in paths}
    world.revert("HEAD")
    assert file_digests(folder) == digests


def test_layers_that_the_first_training_names_are_registered_where_malmen_finds_none(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_family_model(tmp_path / "model", "mixtral")
    workspace = create_workspace(tmp_path).root
    facts = write_facts(tmp_path / "facts.jsonl", make_facts(24))
    command = ["train", facts, "--model", folder, "--steps", 1, "--rank", 4, "--workspace", workspace]
    status, _, err = run_here(capfd, *command)
    assert status == ExitCode.USAGE and "Name them: --layers" in " ".join(err.split())
    status, _, err = run_here(capfd, *command, "--layers", "model.layers.*.self_attn.o_proj")
    assert status == ExitCode.DONE, err
