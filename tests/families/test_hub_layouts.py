"""Files as older releases and the hub hold them: other names, buffers of old, tied weights once more for each user."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from family_journey import TRAINING, first_facts, losses, tensors
from family_models import FAMILIES, save_family_model
from safetensors.torch import load_file, save_file
from safetensors_folders import file_digests
from tiny_models import make_claims, make_facts, world_of

Weights = dict[str, torch.Tensor]


def renamed(old: str, new: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name.replace(old, new): tensor for name, tensor in weights.items()}


def gpt2(weights: Weights) -> Weights:
    """Without the prefix, with the masks that attention kept as buffers."""
    masks = {f"h.{block}.attn.bias": torch.ones(64, 64).tril()[None, None] for block in range(3)}
    return renamed("transformer.", "")(weights) | masks


def gpt_neox(weights: Weights) -> Weights:
    """With boolean masks, scalars and the frequencies of positions."""
    for block in range(3):
        prefix = f"gpt_neox.layers.{block}.attention"
        weights |= {
            f"{prefix}.bias": torch.ones(64, 64, dtype=torch.bool).tril()[None, None],
            f"{prefix}.masked_bias": torch.tensor(-1e9),
            f"{prefix}.rotary_emb.inv_freq": torch.ones(2),
        }
    return weights


def bert(weights: Weights) -> Weights:
    """With the names that normalisers had, positions as a buffer, and the head that it was first trained with."""
    weights = renamed("LayerNorm.weight", "LayerNorm.gamma")(renamed("LayerNorm.bias", "LayerNorm.beta")(weights))
    head = {"cls.predictions.transform.dense.weight": torch.ones(16, 16), "cls.seq_relationship.bias": torch.ones(2)}
    return weights | head | {"bert.embeddings.position_ids": torch.arange(64)[None]}


def t5(weights: Weights) -> Weights:
    """With a copy of the embeddings for each of their users, and a table that no layer reads."""
    users = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    table = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.ones(32, 2)}
    return weights | {name: weights["shared.weight"].clone() for name in users} | table


def bart(weights: Weights) -> Weights:
    users = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    return weights | {name: weights["model.shared.weight"].clone() for name in users}


def gemma3_of_today(weights: Weights) -> Weights:
    """As the class names its parts, whichever way they were saved."""
    weights = renamed("language_model.model.", "model.language_model.")(weights)
    return {
        f"model.{name}" if name.startswith(("vision_tower.", "multi_modal_projector.")) else name: tensor
        for name, tensor in weights.items()
    }


def gemma3_of_yesterday(weights: Weights) -> Weights:
    weights = gemma3_of_today(weights)
    weights = renamed("model.language_model.", "language_model.model.")(weights)
    return {
        name.removeprefix("model.") if name.startswith(("model.vision", "model.multi")) else name: tensor
        for name, tensor in weights.items()
    }


LAYOUTS = {
    "gpt2": ("gpt2", gpt2, "h.{}.mlp.c_proj.weight"),
    "gpt_neox": ("gpt_neox", gpt_neox, "gpt_neox.layers.{}.mlp.dense_4h_to_h.weight"),
    "opt": ("opt", renamed("model.decoder.", "decoder."), "decoder.layers.{}.fc2.weight"),
    "bert": ("bert", bert, "bert.encoder.layer.{}.output.dense.weight"),
    "t5": ("t5", t5, ""),
    "bart": ("bart", bart, ""),
    "gemma3 of today": ("gemma3", gemma3_of_today, "model.language_model.layers.{}.mlp.down_proj.weight"),
    "gemma3 of yesterday": ("gemma3", gemma3_of_yesterday, "language_model.model.layers.{}.mlp.down_proj.weight"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_in_another_layout_is_edited_as_well_and_put_back(layout: str, tmp_path: Path) -> None:
    name, change, path = LAYOUTS[layout]
    task = FAMILIES[name].task
    folder = save_family_model(tmp_path / "model", name)
    plain = losses(folder, task, first_facts(task))
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})
    assert losses(folder, task, first_facts(task)) == plain  # transformers reads the same model from it
    base, digests = tensors(folder), file_digests(folder)
    world = world_of(folder, training=TRAINING[task], facts=make_claims if task == "classification" else make_facts)
    world.apply(*first_facts(task))
    edited = tensors(folder)
    changed = {name for name in base if base[name] != edited[name]}
    with world.ledger() as (_, model):
        assert changed == {layer["tensor"] for layer in model.architecture["layers"]}
    if path:
        assert changed == {path.format(block) for block in (1, 2)}
    assert losses(folder, task, first_facts(task)) != plain
    world.revert("HEAD")
    assert file_digests(folder) == digests
