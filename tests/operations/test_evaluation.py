"""Evaluating a file and an entry on real tiny checkpoints: right scores, and nothing written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import (
    POSITIONS,
    SENTENCES,
    TINY_TRAINING,
    World,
    everything,
    fact_set,
    make_fact,
    make_facts,
    make_world,
)

from malmen_cli.errors import UnsafeFile, UsageError, WrongBase
from malmen_cli.evaluation.examination import Answers, Examination
from malmen_cli.evaluation.overlap import TrainedOn
from malmen_cli.evaluation.report import Report
from malmen_cli.facts import Fact
from malmen_cli.ledger import store
from malmen_cli.operations.active import out_of_range
from malmen_cli.operations.apply import ApplyOptions, apply_facts
from malmen_cli.operations.editors import trained_on
from malmen_cli.operations.evaluated import Evaluated, EvaluationOptions
from malmen_cli.operations.evaluation import choose, evaluate_entry, evaluate_file, lessons_of
from malmen_cli.operations.rebase import rebase
from malmen_cli.operations.train import train_editor

OPTIONS = EvaluationOptions(max_new_tokens=4)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def of_file(world: World, facts: Sequence[Fact], options: EvaluationOptions = OPTIONS) -> Evaluated:
    with world.ledger() as (ledger, model):
        return evaluate_file(ledger, model, fact_set(facts), options)


def of_entry(world: World, name: str = "HEAD", options: EvaluationOptions = OPTIONS) -> Evaluated:
    with world.ledger() as (ledger, model):
        with ledger.read() as db:
            entry = store.resolve_entry(db, name, model.id)
        return evaluate_entry(ledger, model, entry, options)


def second_editor(world: World) -> str:
    with world.ledger() as (ledger, model):
        config = TINY_TRAINING.model_copy(update={"seed": 7})
        return train_editor(ledger, model, fact_set(make_facts(24, start=4000)), config).record.id


def prompts(report: Report) -> list[str]:
    return [fact.prompt for fact in report.facts]


class TestFile:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_scores_are_those_of_applying_just_these_facts(self, tmp_path: Path, dtype: str) -> None:
        world = make_world(tmp_path, dtype=dtype)
        evaluated = of_file(world, make_facts(6))
        with world.ledger() as (ledger, model):
            check = apply_facts(ledger, model, fact_set(make_facts(6)), ApplyOptions(dry_run=True), "").check
        assert check is not None
        assert (evaluated.report.before.forced, evaluated.report.after.forced) == (check.before, check.after)
        assert evaluated.report.wrong() and len(evaluated.report.wrong()) == len(check.wrong)
        assert (evaluated.available, evaluated.edited, evaluated.sampled) == (6, 6, False)

    def test_nothing_is_written(self, world: World) -> None:
        world.apply(*make_facts(2))
        before = everything(world)
        of_file(world, make_facts(5))
        of_entry(world)
        assert everything(world) == before

    def test_who_applies_meanwhile_plays_no_part(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        facts = make_facts(5)
        clean, ask = of_file(world, facts).report, Examination.ask

        def meanwhile(examination: Examination, *args: Any, **options: Any) -> Answers:
            monkeypatch.setattr(Examination, "ask", ask)
            world.apply(*make_facts(3, start=3))
            return examination.ask(*args, **options)

        monkeypatch.setattr(Examination, "ask", meanwhile)
        assert of_file(world, facts).report == clean
        assert Examination.ask is ask  # it was applied

    def test_what_is_active_and_stored_plays_no_part(self, world: World) -> None:
        facts = make_facts(5)
        clean = of_file(world, facts)
        world.apply(*make_facts(3, start=3), make_fact(0, "New York"))
        assert of_file(world, facts).report == clean.report

    def test_another_editor_may_be_tried_while_one_is_in_force(self, world: World) -> None:
        facts = make_facts(5)
        one = of_file(world, facts)
        other = second_editor(world)
        world.apply(*facts, editor=one.editor)
        assert of_file(world, facts).report == one.report  # by default the one in force
        tried = of_file(world, facts, replace(OPTIONS, editor=other))
        assert tried.editor == other != one.editor
        assert tried.report.before == one.report.before and tried.report != one.report

    def test_the_same_seed_takes_the_same_facts_in_the_order_of_the_file(self, world: World) -> None:
        facts = make_facts(20)
        one, again, other = (of_file(world, facts, replace(OPTIONS, n_edits=5, seed=seed)) for seed in (3, 3, 4))
        assert one.report == again.report and one.numbers == again.numbers
        assert one.numbers == sorted(one.numbers) and one.numbers != other.numbers
        assert prompts(one.report) == [facts[number - 1].prompt for number in one.numbers]
        assert one.sampled and one.edited == len(one.numbers) == 5

    def test_by_default_no_more_than_the_editor_was_trained_for(self, world: World) -> None:
        evaluated = of_file(world, make_facts(11))
        assert (evaluated.edited, evaluated.available, evaluated.sampled) == (8, 11, True)
        assert evaluated.warnings == []
        more = of_file(world, make_facts(11), replace(OPTIONS, n_edits=11))
        assert more.edited == 11 and any("trained for 1 to 8" in warning for warning in more.warnings)

    @pytest.mark.parametrize("sample_size", [True, False])
    def test_no_editor_was_trained_for_more_facts_than_there_were(self, tmp_path: Path, sample_size: bool) -> None:
        training = TINY_TRAINING.model_copy(update={"facts_per_step": 1024, "sample_size": sample_size})
        small = make_world(tmp_path, training=training)
        rows = len(make_facts(24)) - 5  # a fifth is held out
        with small.ledger() as (ledger, model), ledger.read() as db:
            [editor] = store.editors(db, model.id)
        assert out_of_range(editor, rows) == []
        [words] = out_of_range(editor, rows + 1)
        assert f"was trained for {f'1 to {rows}' if sample_size else rows}: expect" in words
        assert of_file(small, make_facts(rows + 5)).edited == rows

    def test_facts_without_room_are_left_out_and_counted(self, world: World) -> None:
        long = Fact("of the " * POSITIONS + "land", "Rome")
        facts = [make_fact(0), long, make_fact(1)]
        evaluated = of_file(world, facts)
        assert (evaluated.numbers, evaluated.edited, evaluated.report.left_out["edit"]) == ([1, 3], 2, 1)
        assert evaluated.report == replace(
            of_file(world, [facts[0], facts[2]]).report, left_out=evaluated.report.left_out
        )
        for seed in range(4):  # one that fits is found, whichever comes up first
            one = of_file(world, facts, replace(OPTIONS, n_edits=1, seed=seed))
            assert (one.edited, one.sampled) == (1, True) and one.numbers[0] in (1, 3)
        with pytest.raises(UsageError, match="no fact fits"):
            of_file(world, [long])

    def test_without_an_editor_the_command_to_run_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no editor yet") as refusal:
            of_file(make_world(tmp_path, training=None), make_facts(2))
        assert "malmen train" in str(refusal.value.remedy)

    def test_a_changed_checkpoint_is_refused(self, world: World) -> None:
        path = world.checkpoint / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(WrongBase):
            of_file(world, make_facts(2))


class TestEntry:
    def test_the_newest_scores_as_its_check_did(self, world: World) -> None:
        applied = world.apply(*make_facts(5))
        assert applied.check is not None
        report = of_entry(world).report
        assert (report.before.forced, report.after.forced) == (applied.check.before, applied.check.after)
        assert prompts(report) == [fact.prompt for fact in make_facts(5)]

    def test_an_older_one_is_scored_with_what_came_later(self, world: World) -> None:
        world.apply(*make_facts(3))
        alone = of_entry(world)
        assert alone.others is not None and (alone.others.active, alone.others.asked, alone.others.after) == (
            0,
            0,
            None,
        )
        later = world.apply(*make_facts(5, start=3))
        both = of_entry(world, "#2")
        assert both.edited == 8 and prompts(both.report) == prompts(alone.report)
        assert both.report.before == alone.report.before
        assert both.report.results != alone.report.results
        # The same weights as those of all eight edited together, and the later ones are asked beside.
        together = of_file(world, make_facts(8)).report
        assert list(both.report.results) == [result for result in together.results if result.fact < 3]
        assert both.others is not None and later.check is not None
        assert (both.others.active, both.others.asked) == (5, 5)
        assert both.others.after == later.check.after.edit_success

    def test_other_active_facts_are_asked_up_to_a_number(self, world: World) -> None:
        world.apply(*make_facts(3))
        world.apply(*make_facts(5, start=3))
        others = of_entry(world, "#2", replace(OPTIONS, check_old=2)).others
        assert others is not None and (others.active, others.asked) == (5, 2)

    def test_reverted_and_superseded_facts_are_named_and_left_out(self, world: World) -> None:
        world.apply(*make_facts(5))
        world.revert("#2", 2)
        world.apply(make_fact(3, "Ouagadougou"))
        evaluated = of_entry(world, "#2")
        assert [(fact.number, fact.why) for fact in evaluated.not_in_effect] == [(2, "reverted"), (4, "superseded")]
        assert evaluated.numbers == [1, 3, 5] and evaluated.available == 5
        assert prompts(evaluated.report) == [make_fact(i).prompt for i in (0, 2, 4)]
        assert evaluated.edited == 4 and evaluated.others is not None and evaluated.others.active == 1

    def test_facts_that_came_back_are_in_effect(self, world: World) -> None:
        world.apply(*make_facts(3))
        before = of_entry(world)
        world.revert("HEAD")
        world.revert("HEAD")
        assert of_entry(world, "#2").report == before.report

    def test_a_sample_of_those_in_effect(self, world: World) -> None:
        world.apply(*make_facts(8))
        world.revert("#2", 1, 2)
        evaluated = of_entry(world, "#2", replace(OPTIONS, n_edits=3, seed=1))
        assert evaluated.sampled and len(evaluated.numbers) == 3 and set(evaluated.numbers) <= set(range(3, 9))
        assert evaluated.edited == 6

    def test_a_rebase_is_scored_on_all_facts_that_it_moved(self, world: World) -> None:
        world.apply(*make_facts(2))
        world.apply(*make_facts(3, start=2))
        editor = second_editor(world)
        with world.ledger() as (ledger, model):
            rebase(ledger, model, editor, "malmen rebase")
        evaluated = of_entry(world)
        assert evaluated.editor == editor and len(evaluated.numbers) == 5
        assert evaluated.report.after == of_file(world, make_facts(5)).report.after
        world.revert("#2")
        assert [fact.why for fact in of_entry(world, "#4").not_in_effect] == ["reverted", "reverted"]

    def test_entries_without_facts_in_effect_are_refused(self, world: World) -> None:
        world.apply(*make_facts(2))
        world.revert("HEAD")
        for name, reason in (("#1", "register"), ("#2", "none of the 2 facts"), ("#3", "revert entry")):
            with pytest.raises(UsageError, match=reason):
                of_entry(world, name)


class TestOverlap:
    """The world's editor was trained on facts 4000 and on; some of them were held out of it."""

    def lessons(self, world: World) -> TrainedOn:
        with world.ledger() as (ledger, model), ledger.read() as db:
            return lessons_of(ledger, store.editors(db, model.id)[0]) or pytest.fail("nothing was recorded")

    def test_facts_of_the_training_are_left_out_and_those_held_out_of_it_are_not(self, world: World) -> None:
        taught = make_facts(24, start=4000)
        seen = [self.lessons(world).knows_prompt(fact) for fact in taught]
        assert 0 < sum(seen) < len(taught)
        evaluated = of_file(world, [*taught, *make_facts(2)], replace(OPTIONS, n_edits=100))
        assert evaluated.numbers == [i for i, known in enumerate([*seen, False, False], 1) if not known]
        overlap = evaluated.overlap
        assert overlap is not None and (overlap.same_prompt, overlap.left_out) == (sum(seen), True)
        assert evaluated.available == len(taught) + 2 and not evaluated.sampled

    def test_they_may_be_kept(self, world: World) -> None:
        facts = [*make_facts(24, start=4000), *make_facts(2)]
        evaluated = of_file(world, facts, replace(OPTIONS, n_edits=100, overlap="keep"))
        assert len(evaluated.numbers) == len(facts)
        overlap = evaluated.overlap
        assert overlap is not None and not overlap.left_out and overlap.same_prompt == overlap.same_subject > 0
        assert overlap.as_dict()["left_out"] == 0 and overlap.same_unrelated > 0

    def test_the_sample_is_drawn_from_the_others(self, world: World) -> None:
        evaluated = of_file(world, [*make_facts(24, start=4000), *make_facts(9)], replace(OPTIONS, n_edits=5))
        lessons = self.lessons(world)
        assert len(evaluated.numbers) == 5 and evaluated.sampled
        assert not any(lessons.knows_prompt(fact) for fact in evaluated.report.facts)

    def test_nothing_but_lessons_is_refused(self, world: World) -> None:
        lessons = [fact for fact in make_facts(24, start=4000) if self.lessons(world).knows_prompt(fact)]
        with pytest.raises(UsageError, match="was trained on all") as refusal:
            of_file(world, lessons)
        assert "--overlap keep" in str(refusal.value.remedy)

    def test_facts_of_a_subject_that_was_taught_are_scored_apart(self, world: World) -> None:
        taught = next(fact for fact in make_facts(24, start=4000) if self.lessons(world).knows_prompt(fact))
        other = replace(taught, prompt=f"In {taught.subject} one pays with", target="Lima", rephrases=())
        evaluated = of_file(world, [*make_facts(5), other])
        overlap = evaluated.overlap
        assert overlap is not None and (overlap.same_prompt, overlap.same_subject) == (0, 1)
        assert overlap.scores_same_subject == evaluated.report.part([5]).six_scores
        assert overlap.scores_other == evaluated.report.part(range(5)).six_scores

    def test_nothing_is_known_of_an_editor_that_does_not_say(self, world: World) -> None:
        with world.ledger() as (ledger, model):
            with ledger.read() as db:
                editor = store.editors(db, model.id)[0]
            path = ledger.workspace.editors / editor.id / "editor.json"
            description = json.loads(path.read_text())
            del description["training"]["saw"]  # as earlier versions wrote it
            path.write_text(json.dumps(description))
            assert trained_on(path.parent, editor) is None
            for damaged in ("x", {"prompts": "AAAA"}, {"prompts": 1, "unrelated": "", "subjects": ""}):
                path.write_text(json.dumps({**description, "training": {"saw": damaged}}))
                with pytest.raises(UnsafeFile, match="is damaged"):
                    trained_on(path.parent, editor)

    def test_an_entrys_facts_are_all_scored(self, world: World) -> None:
        world.apply(*make_facts(4, start=4000))
        evaluated = of_entry(world)
        assert len(evaluated.numbers) == 4
        overlap = evaluated.overlap
        assert overlap is not None and overlap.same_prompt > 0 and not overlap.left_out


class TestDrift:
    TEXT = (" ".join(SENTENCES), "text.txt")

    def test_of_a_file_and_of_the_entry_that_applies_it_is_the_same(self, world: World) -> None:
        options = replace(OPTIONS, drift=self.TEXT, generate=False)
        of_it = of_file(world, make_facts(5), options).drift
        world.apply(*make_facts(5))
        now = of_entry(world, options=options).drift
        assert of_it is not None and now is not None
        assert now.before == of_it.before and now.after.value == pytest.approx(of_it.after.value, rel=1e-5)
        assert of_it.ratio.value != 1 and of_it.source == "text.txt"

    def test_is_not_measured_unless_text_is_given(self, world: World) -> None:
        assert of_file(world, make_facts(2)).drift is None

    def test_of_another_task_is_refused_before_the_model_is_loaded(self, world: World) -> None:
        with world.ledger() as (ledger, model):
            other = replace(model, architecture={**model.architecture, "task": "classification"})
            with pytest.raises(UsageError, match="classification model"):
                evaluate_file(ledger, other, fact_set(make_facts(2)), replace(OPTIONS, drift=self.TEXT))


class TestChoose:
    def test_takes_all_where_no_fewer_are_wanted(self) -> None:
        assert choose(4, None, 0) == choose(4, 4, 1) == choose(4, 9, 2) == [0, 1, 2, 3]

    def test_draws_distinct_ones_by_seed_alone(self) -> None:
        drawn = [choose(50, 10, seed) for seed in range(20)]
        assert all(len(set(places)) == 10 and places == sorted(places) for places in drawn)
        assert len(set(map(tuple, drawn))) == 20
        assert choose(50, 10, 3) == drawn[3]
