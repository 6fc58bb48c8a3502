"""The loop: it learns, visits every row once an epoch, and goes on after SIGKILL as if nothing had happened."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_training import training_config
from safetensors import safe_open
from tiny_models import (
    LAYERS,
    TINY_TRAINING,
    World,
    load,
    make_facts,
    make_world,
    run_malmen,
    save_tiny_model,
    start_malmen,
    write_facts,
)

from malmen_cli.config import TrainingConfig, resolve_training
from malmen_cli.errors import MalmenError, UsageError
from malmen_cli.evaluation.metrics import Scores
from malmen_cli.ledger import store
from malmen_cli.training import loop
from malmen_cli.training.loop import StepReport, Trained, Watcher, _Run, train
from malmen_cli.training.rows import Split, split_rows
from malmen_cli.training.validation import Validation


def train_tiny(folder: Path, config: TrainingConfig, facts: int = 24) -> tuple[Trained, list[StepReport], Split]:
    model = load(save_tiny_model(folder / "model"), float64=False)
    split = split_rows(make_facts(facts), model.tokenizing, share=config.held_out, largest=400, seed=config.seed)
    reports: list[StepReport] = []
    return train(model, split, config, folder / "run", watcher=Watcher(step=reports.append)), reports, split


def test_training_lowers_the_loss_and_keeps_the_best_editor(tmp_path: Path) -> None:
    rates = {"learning_rate": 3e-2, "scalar_learning_rate": 1e-1}
    # Every step edits all rows, so that the losses of two steps compare.
    everything = {"facts_per_step": 24, "sample_size": False}
    # Saturated losses are bounded, and those of a model that knows nothing all lie near the bound.
    config = training_config(steps=40, validate_every=10, saturation=0.0, **rates, **everything)
    trained, reports, _ = train_tiny(tmp_path, config)
    assert reports[-1].losses.total < 0.8 * reports[0].losses.total
    history = trained.progress.history
    assert [record["step"] for record in history] == [10, 20, 30, 40]
    assert trained.progress.best == max(record["summary"] for record in history)
    assert trained.progress.best_step == max(history, key=lambda record: record["summary"])["step"]
    assert reports[-1].done == 1
    assert all(torch.isfinite(tensor).all() for tensor in trained.editor.tensors().values())


def test_of_equal_summaries_the_scores_of_the_editor_that_is_kept_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = Scores(0.5, 0.5, 0.5)
    monkeypatch.setattr(loop, "validate", lambda step, rows, sizes: Validation({1: scores}))
    training = TINY_TRAINING.model_copy(update={"steps": 4, "validate_every": 1})
    world = make_world(tmp_path, training=training)
    with world.ledger() as (ledger, model), ledger.read() as db:
        [editor] = store.editors(db, model.id)
    assert editor.scores["step"] == 4


def test_each_step_takes_1_to_n_rows_and_each_epoch_every_row_once(tmp_path: Path) -> None:
    config = training_config(steps=1000)
    model = load(save_tiny_model(tmp_path / "model"), float64=False)
    split = split_rows(make_facts(24), model.tokenizing, share=config.held_out, largest=400, seed=0)
    run = _Run(model, split, config, tmp_path / "run", Watcher(), reuse=False)
    seen: dict[int, Counter[int]] = {}
    sizes = Counter[int]()
    while run.progress.epoch < 12:
        texts = run._next_texts()
        seen.setdefault(run.progress.epoch, Counter()).update(texts)
        sizes[len(texts)] += 1
        run.progress.step += 1
    del seen[12]  # begun, not finished
    everything = Counter(range(len(split.train)))
    assert all(epoch == everything for epoch in seen.values())
    assert set(sizes) == set(range(1, 9))
    assert sizes[8] < 3 * sizes[4]  # no size is rare


def test_the_paper_recipe_trains(tmp_path: Path) -> None:
    config = resolve_training("paper", None, {"steps": 3, "validate_every": 1, "save_every": 1, "editor.rank": 8})
    trained, reports, split = train_tiny(tmp_path, config)
    assert [report.facts for report in reports] == [len(split.train)] * 3  # always the largest size there is
    assert trained.editor.step_size_kind == "linear"
    assert trained.editor.preserved == [None] * (LAYERS - 1)
    first, second = trained.editor.normalizers
    assert torch.equal(first.mean, second.mean)  # moments shared by layers of one shape
    rows = sum(row.edit.supervised for row in split.train)
    assert first.count == 2 * rows


class TestResuming:
    # One validation, at the end: the editor that is kept has gone through every step.
    ARGUMENTS = ("--steps", "24", "--save-every", "3", "--validate-every", "24", "--rank", "4", "--facts-per-step", "6")

    @pytest.fixture
    def world(self, tmp_path: Path) -> World:
        return make_world(tmp_path, training=None)

    def train(self, world: World, facts: Path, *more: str) -> dict[str, Any]:
        """Train to the end; returns what `--json` says of it."""
        status, out, err = run_malmen(world, "train", facts, "--device", "cpu", "--json", *self.ARGUMENTS, *more)
        assert status == 0, err
        said: dict[str, Any] = json.loads(out)
        return said

    def test_after_sigkill_gives_the_editor_of_an_uninterrupted_run_bit_for_bit(
        self, world: World, tmp_path: Path
    ) -> None:
        facts = write_facts(tmp_path / "facts.jsonl", make_facts(30))
        whole = self.train(world, facts)
        with start_malmen(world, "train", facts, "--device", "cpu", *self.ARGUMENTS) as process:
            while process.poll() is None and not list(world.workspace.training.glob("*/state.safetensors")):
                time.sleep(0.002)
            process.kill()
        [state] = world.workspace.training.glob("*/state.safetensors")
        with safe_open(state, framework="pt") as file:
            done = json.loads(file.metadata()["progress"])["step"]
        assert 0 < done < 24, "it was not killed midway"
        resumed = self.train(world, facts, "--resume")
        assert resumed["editor"] == whole["editor"]  # the id is a digest of the editor's bytes
        assert whole["best_step"] == resumed["best_step"] == 24
        assert not list(world.workspace.training.iterdir())  # a finished run leaves nothing to resume
        # A control: were all editors alike, equality would say nothing.
        assert self.train(world, facts, "--seed", "1")["editor"] != whole["editor"]

    def test_keeps_the_best_editor_and_the_history_of_before(self, tmp_path: Path) -> None:
        config = training_config(steps=12, validate_every=2, save_every=5)
        model = load(save_tiny_model(tmp_path / "model"), float64=False)
        split = split_rows(make_facts(16), model.tokenizing, share=config.held_out, largest=4, seed=0)
        whole = train(model, split, config, tmp_path / "whole")

        def stop(report: StepReport) -> None:
            if report.step == 9:
                raise KeyboardInterrupt

        told: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            train(model, split, config, tmp_path / "stopped", watcher=Watcher(told=told.append, step=stop))
        assert told[-1] == "step 5 is kept: the same command with --resume goes on from there"
        again: list[StepReport] = []
        resumed = train(model, split, config, tmp_path / "stopped", resume=True, watcher=Watcher(step=again.append))
        assert [report.step for report in again] == list(range(6, 13))
        tensors, expected = resumed.editor.tensors(), whole.editor.tensors()
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)
        timeless = [
            [{key: value for key, value in record.items() if key != "seconds"} for record in run.progress.history]
            for run in (resumed, whole)
        ]
        assert timeless[0] == timeless[1]
        assert len(timeless[0]) == 6

    def test_reads_back_what_was_captured(self, tmp_path: Path) -> None:
        config = training_config(steps=8, validate_every=2)
        model = load(save_tiny_model(tmp_path / "model"), float64=False)
        split = split_rows(make_facts(16), model.tokenizing, share=config.held_out, largest=4, seed=0)
        captured: list[int] = []

        def stop(report: StepReport) -> None:
            if report.step == 3:
                raise KeyboardInterrupt

        def note(done: int, total: int) -> None:
            captured.append(done)

        def interrupted(**settings: Any) -> None:
            captured.clear()
            with pytest.raises(KeyboardInterrupt):
                train(model, split, config, tmp_path / "run", watcher=Watcher(capturing=note, step=stop), **settings)

        interrupted()
        assert captured, "the first run captures"
        interrupted(resume=True)
        assert not captured
        (tmp_path / "run" / "train" / "complete.json").write_text("{}")  # as of another version, or a killed capture
        interrupted(resume=True)
        assert captured
        (tmp_path / "run" / "train" / "0.u").unlink()
        with pytest.raises(MalmenError, match=r"0\.u"):
            interrupted(resume=True)

    def test_nothing_is_an_error(self, tmp_path: Path) -> None:
        model = load(save_tiny_model(tmp_path / "model"), float64=False)
        split = split_rows(make_facts(8), model.tokenizing, share=0.2, largest=4, seed=0)
        with pytest.raises(UsageError, match="no interrupted run"):
            train(model, split, training_config(steps=2), tmp_path / "run", resume=True)


def test_that_answers_of_several_tokens_need_an_end_is_said_unless_it_was_chosen(tmp_path: Path) -> None:
    world = make_world(tmp_path, training=None)
    long = [replace(fact, target=f"{fact.target} and then {fact.target}") for fact in make_facts(12)]
    short = ("--steps", "1", "--rank", "2", "--facts-per-step", "2")
    for facts, chosen, said in (
        (long, (), True),
        (long, ("--end-of-text",), False),
        (long, ("--no-end-of-text",), False),
        (make_facts(12), (), False),
    ):
        file = write_facts(tmp_path / "facts.jsonl", facts)
        status, _, err = run_malmen(world, "train", file, *short, *chosen)
        assert status == 0, err
        assert ("100% of the targets have several tokens" in err and "--end-of-text" in err) == said, err


@pytest.mark.parametrize("own", [False, True])
def test_who_changes_nothing_keeps_lent_prompts_whatever_their_own_targets_are(tmp_path: Path, own: bool) -> None:
    # A lent prompt's target is the one that its fact is to get: the base does not say it, and a good edit does not.
    facts = [fact if own else replace(fact, unrelated=()) for fact in make_facts(24)]
    model = load(save_tiny_model(tmp_path / "model"), float64=False)
    config = training_config(steps=1, learning_rate=1e-12, editor={"initial_change": 1e-9})
    split = split_rows(facts, model.tokenizing, share=config.held_out, largest=400, seed=0)
    [record] = train(model, split, config, tmp_path / "run").progress.history
    kept = [scores["LS"] for scores in record["scores"].values()]
    assert all(score == 1.0 for score in kept) != own, kept
