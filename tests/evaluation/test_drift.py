"""Perplexity of running text, against plain transformers calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_scoring import Slow, shifted
from tiny_models import POSITIONS, SENTENCES, Family, load

from malmen_cli.errors import UsageError
from malmen_cli.evaluation.drift import RunningText, chunked, require_causal

TEXT = " ".join(SENTENCES * 3)


def perplexity(state: Slow, chunks: list[list[int]], start: int) -> float:
    """`start`: of the first token that is predicted in a chunk."""
    losses = []
    for ids in chunks:
        with torch.no_grad():
            logs = state.model(torch.tensor([ids])).logits[0].log_softmax(1)
        losses += [-float(logs[i - 1, ids[i]]) for i in range(start, len(ids))]
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_perplexity_is_that_of_plain_transformers_calls(tiny_folder: Callable[..., Path], family: Family) -> None:
    folder = tiny_folder(family)
    model = load(folder)
    text = RunningText(model, TEXT, "text.txt")
    before = text.ask(batch_tokens=100)
    model.overlay(shifted(model))
    drift = text.drift(before, text.ask())
    chunks = [[*chunk.input_ids, chunk.labels[-1]] for chunk in text.chunks]
    bos = family == "llama"
    # Every token of the text, in order, once.
    assert [token for ids in chunks for token in ids[bos:]] == model.tokenizing.tokenizer(
        TEXT, add_special_tokens=False
    )["input_ids"]
    slow = [perplexity(Slow(folder, weights), chunks, 1) for weights in ({}, shifted(load(folder)))]
    assert (drift.before.value, drift.after.value) == pytest.approx(tuple(slow), rel=1e-9)
    assert drift.ratio.value == pytest.approx(slow[1] / slow[0], rel=1e-9)
    assert drift.ratio.low < drift.ratio.value < drift.ratio.high
    assert drift.tokens == sum(len(ids) - 1 for ids in chunks)


def test_chunks_fill_the_models_positions_and_are_equal_but_for_a_token(tiny_folder: Callable[..., Path]) -> None:
    for family in ("gpt2", "llama"):
        chunks = chunked(load(tiny_folder(family)), TEXT)
        lengths = {chunk.length for chunk in chunks}
        assert len(chunks) > 2 and max(lengths) <= POSITIONS and max(lengths) - min(lengths) <= 1
    [short] = chunked(load(tiny_folder()), "The capital of")
    assert short.length == short.supervised


def test_the_same_weights_do_not_drift(tiny_folder: Callable[..., Path]) -> None:
    text = RunningText(load(tiny_folder()), TEXT, "text.txt")
    drift = text.drift(text.ask(), text.ask())
    assert (drift.ratio.low, drift.ratio.value, drift.ratio.high) == (1, 1, 1)
    assert drift.before == drift.after


def test_too_little_text_and_other_tasks_are_refused(tiny_folder: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="too little text"):
        RunningText(load(tiny_folder()), "T", "text.txt")
    for task in ("classification", "sequence-to-sequence"):
        with pytest.raises(UsageError, match=f"this is a {task} model"):
            require_causal(task)
