"""The loop: it learns, visits every row once an epoch, and goes on after SIGKILL as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import signal
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
    make_fact,
    make_facts,
    make_world,
    run_malmen,
    save_tiny_model,
    start_malmen,
    write_facts,
)

from malmen_cli.config import TrainingConfig, resolve_training
from malmen_cli.errors import ExitCode, UsageError
from malmen_cli.evaluation.metrics import Scores
from malmen_cli.ledger import store
from malmen_cli.training import loop
from malmen_cli.training.loop import StepReport, Trained, Watcher, _Run, train
from malmen_cli.training.rows import Split, split_rows
from malmen_cli.training.step import MetaStep
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
        state = self.killed(world, facts)
        with safe_open(state, framework="pt") as file:
            done = json.loads(file.metadata()["progress"])["step"]
        assert 0 < done < 24, "it was not killed midway"
        resumed = self.train(world, facts, "--resume")
        assert resumed["editor"] == whole["editor"]  # the id is a digest of the editor's bytes
        assert whole["best_step"] == resumed["best_step"] == 24
        assert not list(world.workspace.training.iterdir())  # a finished run leaves nothing to resume
        # A control: were all editors alike, equality would say nothing.
        assert self.train(world, facts, "--seed", "1")["editor"] != whole["editor"]

    def killed(self, world: World, facts: Path) -> Path:
        """Kill the run as soon as it has saved a state; returns where."""
        with start_malmen(world, "train", facts, "--device", "cpu", *self.ARGUMENTS) as process:
            while process.poll() is None and not list(world.workspace.training.glob("*/state.safetensors")):
                time.sleep(0.002)
            process.kill()
        [state] = world.workspace.training.glob("*/state.safetensors")
        return state

    def test_how_often_states_are_saved_may_change_and_nothing_else(self, world: World, tmp_path: Path) -> None:
        facts = write_facts(tmp_path / "facts.jsonl", make_facts(30))
        self.killed(world, facts)
        again = ("train", facts, "--device", "cpu", *self.ARGUMENTS, "--resume")
        status, _, err = run_malmen(world, *again, "--seed", "1")
        assert status == ExitCode.USAGE and "no interrupted run" in err
        assert self.train(world, facts, "--resume", "--save-every", "7")["best_step"] == 24
        assert not list(world.workspace.training.iterdir())

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
        for spoil in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-4])):
            spoil(tmp_path / "run" / "train" / "0.u")
            interrupted(resume=True)
            assert captured

    def test_a_state_is_saved_by_the_clock_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(loop, "SAVED_EVERY", 0.0)
        model = load(save_tiny_model(tmp_path / "model"), float64=False)
        split = split_rows(make_facts(16), model.tokenizing, share=0.2, largest=4, seed=0)

        def stop(report: StepReport) -> None:
            if report.step == 4:
                raise KeyboardInterrupt

        told: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            watcher = Watcher(told=told.append, step=stop)
            train(model, split, training_config(steps=100), tmp_path / "run", watcher=watcher)
        assert told == ["step 3 is kept: the same command with --resume goes on from there"]

    def test_what_cannot_be_resumed_is_not_left(self, world: World, tmp_path: Path) -> None:
        facts = write_facts(tmp_path / "facts.jsonl", make_facts(30))
        with start_malmen(world, "train", facts, "--device", "cpu", "--steps", "100000", "--rank", "4") as process:
            while process.poll() is None and not list(world.workspace.training.glob("*/train/complete.json")):
                time.sleep(0.002)
            process.send_signal(signal.SIGTERM)
            try:
                assert process.wait(60) == ExitCode.INTERRUPTED
            finally:
                process.kill()
        assert not list(world.workspace.training.iterdir())

    def test_nothing_is_an_error(self, tmp_path: Path) -> None:
        model = load(save_tiny_model(tmp_path / "model"), float64=False)
        split = split_rows(make_facts(8), model.tokenizing, share=0.2, largest=4, seed=0)
        with pytest.raises(UsageError, match="no interrupted run"):
            train(model, split, training_config(steps=2), tmp_path / "run", resume=True)


@pytest.mark.parametrize("every", [1, 100])
def test_a_run_that_diverges_keeps_its_best_editor_or_says_so(tmp_path: Path, every: int) -> None:
    world = make_world(tmp_path, training=None)
    facts = write_facts(tmp_path / "facts.jsonl", make_facts(24))
    rates = ("--learning-rate", "1e3", "--scalar-learning-rate", "1e3")
    steps = ("--steps", "60", "--validate-every", str(every), "--rank", "4", "--facts-per-step", "6")
    status, out, err = run_malmen(world, "train", facts, *steps, *rates, "--json")
    assert "the training diverged after step " in err
    if every == 1:
        said = json.loads(out)
        assert status == 0 and f"warning: {said['diverged']}: the best editor before that is kept" in err
        described = json.loads((world.workspace.editors / said["editor"] / "editor.json").read_text())
        assert described["training"]["diverged"] == said["diverged"]
        status, _, err = run_malmen(world, "train", facts, *steps, *rates, "-q")
        assert status == 0 and "warning: the training diverged after step " in err
    else:
        assert status == ExitCode.FAILED and "Lower --learning-rate or --scalar-learning-rate" in err
    assert not list(world.workspace.training.iterdir())


def test_validations_that_take_longer_than_a_fifth_leave_time_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of 66 seconds, told by a clock of its own: a step takes a second, a validation twenty and a half."""
    now, whole_step, whole_validation = [0.0], MetaStep.__call__, loop.validate

    def step(*arguments: Any, **settings: Any) -> Any:
        now[0] += 1
        return whole_step(*arguments, **settings)

    def validation(*arguments: Any) -> Any:
        now[0] += 20.5
        return whole_validation(*arguments)

    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(MetaStep, "__call__", step)
    monkeypatch.setattr(loop, "validate", validation)
    trained, reports, _ = train_tiny(tmp_path, training_config(minutes=1.1))
    assert [record["step"] for record in trained.progress.history] == [14, 28]
    assert trained.progress.elapsed == pytest.approx(28 + 2 * 20.5) and len(reports) == 28


def test_what_is_left_out_is_said_before_the_training(tmp_path: Path) -> None:
    world = make_world(tmp_path, training=None)
    long = "a very long word " * 40
    facts = [*make_facts(9), replace(make_fact(9), prompt=long), replace(make_fact(10), rephrases=(long, "It is"))]
    file = write_facts(tmp_path / "facts.jsonl", facts)
    status, out, err = run_malmen(
        world, "train", file, "--steps", "1", "--rank", "2", "--facts-per-step", "2", "--json"
    )
    assert status == 0, err
    said = json.loads(out)
    assert (said["left_out"], said["dropped_prompts"]) == (1, 1)
    assert "note: 1 of 11 facts are left out, which do not fit the model, for one " in err
    assert "note: rephrases and unrelated prompts that do not fit the model are left out: 1" in err
    assert "facts to train on are few" in err and err.index("left out") < err.index("step 1 ")


def test_so_it_is_how_many_held_out_facts_have_unrelated_prompts_that_are_trained_on(tmp_path: Path) -> None:
    world = make_world(tmp_path, training=None)
    facts = [replace(fact, unrelated=make_fact(0).unrelated) for fact in make_facts(12)]
    for told, given in ((True, facts), (False, make_facts(12))):
        file = write_facts(tmp_path / "facts.jsonl", given)
        status, _, err = run_malmen(world, "train", file, "--steps", "1", "--rank", "2", "--facts-per-step", "2")
        assert status == 0 and ("held-out facts have unrelated prompts that are trained on too" in err) == told, err


def test_an_editor_whose_files_are_damaged_or_lost_is_trained_again(tmp_path: Path) -> None:
    world = make_world(tmp_path, training=None)
    file = write_facts(tmp_path / "facts.jsonl", make_facts(12))
    command = ("train", file, "--steps", "2", "--rank", "2", "--facts-per-step", "2", "-q")
    status, editor, _ = run_malmen(world, *command)
    assert status == 0
    folder = world.workspace.editors / editor.strip()
    for spoil in (shutil.rmtree, lambda path: (path / "editor.json").write_text("{}")):
        spoil(folder)
        assert run_malmen(world, "verify")[0] == ExitCode.VERIFICATION_FAILED
        assert run_malmen(world, *command)[:2] == (0, editor)
        assert run_malmen(world, "verify")[0] == 0


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
