"""What is asked before and after an edit runs the blocks below the edited layers once, and is answered the same."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch
from tiny_models import fact_set, make_facts, make_world, save_tiny_model
from torch import nn

from malmen_cli.errors import MalmenError
from malmen_cli.language_models.language_model import LanguageModel, attends_plainly
from malmen_cli.language_models.texts import Batch, Tokens
from malmen_cli.ledger.staged import StagedObject
from malmen_cli.operations.apply import ApplyOptions, apply_facts
from malmen_cli.operations.asked_states import AskedStates, states_limit

FACTS = make_facts(12)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> LanguageModel:
    return LanguageModel(save_tiny_model(tmp_path / "model"), dtype=request.param)


@pytest.fixture
def texts(model: LanguageModel) -> list[Tokens]:
    """Ragged, and two of them the same."""
    facts = [*FACTS, FACTS[3]]
    rephrased = [(prompt, fact.target) for fact in facts for prompt in fact.rephrases]
    return [model.tokenizing(prompt, target) for prompt, target in [*((f.prompt, f.target) for f in facts), *rephrased]]


def tokens_below(model: LanguageModel) -> list[int]:
    """Fills with the tokens that go through the first block's attention, pass by pass."""
    seen: list[int] = []
    attention: nn.Module = model.model.get_submodule("transformer.h.0.attn")
    attention.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[0] * args[0].shape[1]))
    return seen


def edit(model: LanguageModel) -> None:
    model.set_weights([weight + torch.randn_like(weight) for weight in model.weights()])


def test_the_second_time_starts_at_the_first_edited_block(model: LanguageModel, texts: list[Tokens]) -> None:
    states, before = AskedStates(model, 1 << 30), model.predictions(texts)
    assert states.predictions(texts) == before
    assert states.predictions(texts[:5]) == model.predictions(texts[:5])
    edit(model)
    after = model.predictions(texts)
    assert after != before
    seen = tokens_below(model)
    assert states.predictions(texts) == after and states.predictions(texts) == after
    assert not seen
    assert states.predictions(texts[:5]) == model.predictions(texts[:5])
    assert seen  # a control: of the model alone


def full_disk(states: AskedStates, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> NoReturn:
        raise MalmenError("no space", remedy="free some")

    monkeypatch.setattr(StagedObject, "write", refuse)


def lost_file(states: AskedStates, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(file: StagedObject, data: bytes, offset: int) -> None:
        os.pwrite(file.descriptor, bytes(data)[:-1], offset)

    monkeypatch.setattr(StagedObject, "write", cut)


@pytest.mark.parametrize("mishap", [full_disk, lost_file])
def test_what_the_disk_does_not_keep_is_run_again(
    model: LanguageModel, texts: list[Tokens], mishap: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = AskedStates(model, 1 << 30)
    mishap(states, monkeypatch)
    for _ in range(2):
        assert states.predictions(texts) == model.predictions(texts)
        edit(model)


@pytest.mark.parametrize("room", [0, 1, 2])
def test_no_more_is_kept_than_may_be(model: LanguageModel, texts: list[Tokens], room: int) -> None:
    parts = texts[:6], texts[6:12]
    sizes = [len({t.input_ids for t in part}) and sum(map(len, {t.input_ids for t in part})) for part in parts]
    item = model.lower_width * model.dtype.itemsize
    states = AskedStates(model, sum(sizes[:room]) * item)
    for part in parts:
        states.predictions(part)
    edit(model)
    seen = tokens_below(model)
    kept = []
    for part in parts:
        seen.clear()
        states.predictions(part)
        kept.append(not seen)
    assert kept == [room > 0, room > 1]


def test_a_capture_leaves_what_asking_starts_from(model: LanguageModel, texts: list[Tokens]) -> None:
    if attends_plainly(model.device, model.dtype):
        pytest.skip("a capture rounds otherwise in 16 bits on a CPU")
    states = AskedStates(model, 1 << 30)
    with states.noting(texts) as keep:
        assert keep is not None
        for batch, rows in model.capture(texts, lower=True):
            assert rows.lower_states is not None
            keep([texts[row] for row in batch.rows], rows.lower_states)
    with states.noting(texts) as again:
        assert again is None
    before = model.predictions(texts)
    seen = tokens_below(model)
    assert states.predictions(texts) == before and not seen
    # Other blocks of the same texts are others.
    assert states.predictions(texts[1:]) == before[1:] and seen


def test_a_model_whose_first_block_is_edited_is_asked_as_a_whole(tmp_path: Path) -> None:
    model = LanguageModel(save_tiny_model(tmp_path / "model"), layers=["transformer.h.*.mlp.c_proj"])
    texts = [model.tokenizing(fact.prompt, fact.target) for fact in FACTS]
    states = AskedStates(model, 1 << 30)
    for _ in range(2):
        assert states.predictions(texts) == model.predictions(texts)
        edit(model)


def test_without_a_folder_for_temporary_files_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert states_limit() == 0


@pytest.mark.parametrize(("kind", "kept"), [("ext4", True), ("tmpfs", False)])
def test_in_memory_nothing_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, kept: bool) -> None:
    mounts = [SimpleNamespace(mountpoint="/", fstype="ext4"), SimpleNamespace(mountpoint=str(tmp_path), fstype=kind)]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounts)
    (tmp_path / "below").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "below"))
    assert (states_limit() > 0) == kept


def test_batches_are_as_large_as_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(tmp_path)
    world.apply(*FACTS[:2])
    seen: list[int] = []
    batches = LanguageModel.batches

    def note(model: LanguageModel, texts: Sequence[Tokens], batch_tokens: int) -> Iterator[Batch]:
        for batch in batches(model, texts, batch_tokens):
            seen.append(batch.input_ids.numel() if len(batch.rows) > 1 else 0)
            yield batch

    with world.ledger() as (ledger, model):
        monkeypatch.setattr(LanguageModel, "batches", note)
        for batch_tokens in (256, 64):
            seen.clear()
            options = ApplyOptions(dry_run=True, batch_tokens=batch_tokens, sample=0)
            apply_facts(ledger, model, fact_set(FACTS), options, "malmen apply")
            assert batch_tokens / 2 < max(seen) <= batch_tokens
