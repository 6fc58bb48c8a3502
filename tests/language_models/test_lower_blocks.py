"""Blocks below the first edited layer are left out where that changes nothing, and the model is left as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from family_models import save_family_model
from tiny_models import load, make_facts, save_tiny_model

from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.lower_states import LowerStates, starts_of, states_size
from malmen_cli.language_models.texts import Tokens


def some_texts(model: LanguageModel) -> list[Tokens]:
    return [model.tokenizing(fact.prompt, fact.target) for fact in make_facts(8)]


def test_none_where_the_first_block_is_edited(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    assert LanguageModel(folder).lower is not None
    assert LanguageModel(folder, layers=["transformer.h.*.mlp.c_proj"]).lower is None


@pytest.mark.parametrize(
    ("family", "layers"),
    [
        # Its blocks hand on the bias of positions too, which the first of them makes.
        ("t5", "encoder.block.[12].layer.1.DenseReluDense.wo"),
        # What they make depends on the encoder's text too.
        ("t5", "decoder.block.[12].layer.2.DenseReluDense.wo"),
        ("bart", "model.decoder.layers.[12].fc2"),
    ],
)
def test_none_where_a_block_hands_on_or_takes_more_than_hidden_states(family: str, layers: str, tmp_path: Path) -> None:
    assert LanguageModel(save_family_model(tmp_path / "model", family), layers=[layers]).lower is None


def test_none_where_a_later_block_reads_what_an_earlier_one_made(tmp_path: Path) -> None:
    """Though all states of a padding token are 0, whatever is left out: the trial must not be of that."""
    model = load(save_tiny_model(tmp_path / "model", "llama"))
    made: list[torch.Tensor] = []
    model.model.model.layers[0].register_forward_hook(lambda _, __, output: made.append(output))
    model.model.model.layers[2].register_forward_hook(lambda _, __, output: output + made.pop())
    assert not model.model.get_input_embeddings().weight[model.tokenizing.padding].any()
    assert model.lower is None


def test_none_where_blocks_hand_on_several_states_of_each_token(tmp_path: Path) -> None:
    model = load(save_tiny_model(tmp_path / "model", "llama"))
    first, second, _ = model.model.model.layers
    fan_out, fan_in = first.forward, second.forward
    first.forward = lambda hidden, **named: fan_out(hidden, **named)[:, :, None].expand(-1, -1, 4, -1)
    second.forward = lambda hidden, **named: fan_in(hidden.mean(2), **named)
    model.require_usable()
    assert model.lower is None


def test_an_encoder_alone_has_them(tmp_path: Path) -> None:
    model = LanguageModel(save_family_model(tmp_path / "model", "bart"), layers=["model.encoder.layers.[12].fc2"])
    assert model.lower is not None
    texts = some_texts(model)
    kept = LowerStates(model, starts_of(model, texts))
    assert sum(kept.fill(1024, 100)) == len(texts)
    assert model.predictions(texts, kept=kept) == model.predictions(texts)


@pytest.mark.parametrize("fail", [False, True])
def test_blocks_are_as_they_were_whatever_happens(fail: bool, tmp_path: Path) -> None:
    model = load(save_tiny_model(tmp_path / "model"))
    assert model.lower is not None
    before = [dict(vars(module)) for module in model.model.modules()]
    [batch] = model.batches(some_texts(model), 10_000)
    states = torch.zeros(sum(batch.lengths), model.lower_width + int(fail), dtype=torch.float64)
    try:
        model.logits(batch, states)
        assert not fail
    except RuntimeError:  # a state too wide
        assert fail
    assert [vars(module).keys() for module in model.model.modules()] == [found.keys() for found in before]
    assert all(not module._forward_pre_hooks for module in model.model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_passes_are_the_same_with_states_that_were_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    model = LanguageModel(save_tiny_model(tmp_path / "model"), dtype=dtype)
    texts = some_texts(model)
    # Room for some of them: the others are run from the start.
    limit = states_size(model, starts_of(model, texts)) // 2
    kept = LowerStates(model, starts_of(model, texts, limit))
    assert sum(kept.fill(100, 3)) == sum(text in kept for text in texts)
    assert {text in kept for text in texts} == {True, False}
    assert kept.data.nbytes <= limit
    found = dict(by_row(model, texts, kept))
    for row, logits in by_row(model, texts, None):
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        assert torch.allclose(found[row], logits, atol=tolerance * float(logits.abs().max()))
    if dtype == torch.float32:
        assert model.predictions(texts, kept=kept) == model.predictions(texts)


def by_row(model: LanguageModel, texts: list[Tokens], kept: LowerStates | None) -> list[tuple[int, torch.Tensor]]:
    found = []
    for batch, references in model.passes(texts, 60, kept):
        parts = model.head.logits_of(references).split([texts[row].supervised for row in batch.rows])
        found += list(zip(batch.rows, parts, strict=True))
    return found


def test_texts_read_alike_share_one_place(tmp_path: Path) -> None:
    model = LanguageModel(save_tiny_model(tmp_path / "model"))
    first, second, *_ = some_texts(model)
    twin = Tokens(first.input_ids, first.labels[-1:])
    assert starts_of(model, [first, twin, second, first]) == starts_of(model, [first, second])
