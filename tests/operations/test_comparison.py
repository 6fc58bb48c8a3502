"""Comparing editors over numbers of facts: nested facts, points that are kept, and a model that is left alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import World, everything, fact_set, load, make_facts, make_world

from malmen_cli.errors import NumericalFailure, UsageError
from malmen_cli.evaluation.comparison import Comparison, Point, over_seeds
from malmen_cli.evaluation.report_pages import html_page
from malmen_cli.facts import Fact
from malmen_cli.methods.registry import METHODS
from malmen_cli.operations.comparison import compare, contenders
from malmen_cli.operations.comparison_bench import ComparisonBench, first_answers
from malmen_cli.operations.draws import draw_of
from malmen_cli.operations.evaluated import EvaluationOptions
from malmen_cli.operations.evaluation import evaluate_file
from malmen_cli.operations.method_editors import MethodRequest, make_and_keep
from malmen_cli.operations.report_folder import ReportFolder, default_folder

OPTIONS = EvaluationOptions(max_new_tokens=3)
QUICK = METHODS["ft"].settings_class().model_validate({"epochs": 1})
PLAIN = EvaluationOptions(generate=False)
FACTS = tuple(make_facts(12))


class Stop(Exception):
    """An interruption, at a point of a test's choice."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def run(
    world: World,
    folder: Path | ReportFolder,
    sizes: Sequence[int],
    *,
    facts: Sequence[Fact] = FACTS,
    seeds: Sequence[int] = (0,),
    methods: Sequence[str] = (),
    options: EvaluationOptions = OPTIONS,
    stop_after: int | None = None,
) -> tuple[Comparison, list[Point]]:
    """The comparison, and the points that were made for it now."""
    made: list[Point] = []

    def note(point: Point) -> None:
        made.append(point)
        if len(made) == stop_after:
            raise Stop

    with world.ledger() as (ledger, model):
        given = fact_set(facts)
        requests = [MethodRequest(METHODS[name]) for name in methods]
        place = folder if isinstance(folder, ReportFolder) else ReportFolder(folder)
        chosen = contenders(ledger, model, given, [], requests, options)
        found = compare(ledger, model, given, chosen, sizes, seeds, options, place, made=note)
    return found, made


def without_time(point: Point) -> Point:
    return point.model_copy(update={"seconds": 0.0, "asking_seconds": 0.0, "peak_bytes": None})


def test_the_largest_point_is_what_eval_says_and_nothing_is_written(world: World, tmp_path: Path) -> None:
    before = everything(world)
    found, made = run(world, tmp_path / "r", [3, 6])
    assert everything(world) == before
    assert [point.n_edits for point in made] == [3, 6] and found.missing == []
    point = made[-1]
    with world.ledger() as (ledger, model):
        evaluated = evaluate_file(ledger, model, fact_set(FACTS), replace(OPTIONS, n_edits=6))
    report = evaluated.report
    assert point.asked == report.asked and point.edited == 6
    # The same facts in another order, so in other batches: no more than rounding may differ.
    for ours, theirs in (
        (point.scores.reliability.teacher_forced, report.six_scores.reliability.forced),
        (point.scores.locality.teacher_forced, report.six_scores.locality.forced),
    ):
        assert ours is not None and theirs is not None
        assert ours.value == pytest.approx(theirs.value, abs=0.05)
    assert pytest.approx((report.before.forced.edit_success, report.before.forced.locality)) == (
        point.before.ES,
        point.before.LS,
    )
    assert point.seconds > 0 and point.asking_seconds > 0
    assert point.peak_bytes is None or point.peak_bytes > 10_000_000


def test_a_point_does_not_depend_on_the_points_before_it(world: World, tmp_path: Path) -> None:
    """The model is back at its base after every point, also after methods that work with its weights."""
    methods = ("malmen", "ft", "ultraedit")
    together, _ = run(world, tmp_path / "together", [2, 4], methods=methods)
    again, _ = run(world, tmp_path / "again", [2, 4], methods=methods[:1])
    ours = [without_time(point) for point in together.points if point.contender == "malmen"]
    assert ours == [without_time(point) for point in again.points]
    assert together.labels == list(methods) and len(together.points) == 6


def test_what_does_not_fit_is_replaced_by_the_facts_of_eval(world: World, tmp_path: Path) -> None:
    long = [replace(fact, prompt="Bakeli and " * 99 + fact.prompt) for fact in FACTS[:9]]
    facts = [*long, *FACTS[9:]]
    for seed in range(2):
        found, [point] = run(world, tmp_path / f"{seed}", [2], facts=facts, seeds=[seed], options=PLAIN)
        assert (point.n_edits, point.edited, point.left_out) == (2, 2, {})
        assert any("did not fit the model: others have their places." in note for note in found.notes)
        with world.ledger() as (ledger, model):
            evaluated = evaluate_file(ledger, model, fact_set(facts), replace(PLAIN, n_edits=2, seed=seed))
            bench = draw_of(facts, range(12), 2, load(world.checkpoint).tokenizing, seed, nested=True)
        assert evaluated.numbers == sorted(place + 1 for place in bench.places)
        assert point.asked == evaluated.report.asked


def test_an_interrupted_comparison_goes_on_where_it_was(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    with pytest.raises(Stop):
        run(world, folder, [2, 4, 6], stop_after=2)
    kept = Comparison.from_json((folder / "report.json").read_bytes())
    assert [point.n_edits for point in kept.points] == [2, 4]
    found, made = run(world, folder, [2, 4, 6])
    assert [point.n_edits for point in made] == [6]
    assert found.points[:2] == kept.points
    whole, _ = run(world, tmp_path / "whole", [2, 4, 6])
    assert list(map(without_time, found.points)) == list(map(without_time, whole.points))
    assert run(world, folder, [2, 4, 6])[1] == []


def test_what_an_earlier_day_left_unfinished_goes_on_in_its_folder(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    early = tmp_path / "malmen-eval-tiny-2020-01-01"
    with pytest.raises(Stop):
        run(world, early, [2, 3], stop_after=1)
    (tmp_path / "malmen-eval-tiny-2020-01-02").mkdir()
    (tmp_path / "malmen-eval-tiny-2020-01-02" / "notes.txt").write_text("of something else")
    other, today = default_folder("tiny"), default_folder("tiny")
    run(world, other, [4])
    assert other.path.name > early.name  # another question is of today
    found, made = run(world, today, [2, 3])
    assert today.path.name == early.name and len(made) == 1 and found.missing == []
    again = default_folder("tiny")
    # What was killed in its first save, or is just being begun by another command, is passed over.
    (tmp_path / f"{other.path.name}-2").mkdir()
    (tmp_path / f"{other.path.name}-2" / ".malmen-tmp-0123456789abcdef").write_text("half")
    run(world, again, [2, 3])
    assert again.path.name == f"{other.path.name}-3"  # what is finished is not of today


def test_reports_that_are_begun_at_the_same_time_have_folders_of_their_own(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    one, two, named = default_folder("tiny"), default_folder("tiny"), ReportFolder(Path("named"))
    late = ReportFolder(Path("named"))
    run(world, one, [2])
    found, _ = run(world, two, [3])
    assert two.path.name == f"{one.path.name}-2" and one.path.name != two.path.name
    assert [point.n_edits for point in found.points] == [3]
    run(world, named, [2])
    with pytest.raises(UsageError, match="another question"):
        run(world, late, [3])


def test_points_that_are_made_elsewhere_are_told_apart(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    with pytest.raises(Stop):
        run(world, folder, [2, 4], stop_after=1)
    assert not any("were made on" in note for note in run(world, tmp_path / "whole", [2])[0].notes)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        found, _ = run(world, folder, [2, 4])
    finally:
        torch.set_num_threads(threads)
    [note] = [note for note in found.notes if "were made on cpu" in note]
    assert f"({threads + 1} threads, torch {torch.__version__}), unlike the first ones" in note


def test_a_folder_of_something_else_is_left_alone(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    run(world, folder, [2])
    kept = (folder / "report.json").read_bytes()
    for sizes, seeds, options in (([2, 3], (0,), OPTIONS), ([2], (1,), OPTIONS), ([2], (0,), EvaluationOptions())):
        with pytest.raises(UsageError, match="another question"):
            run(world, folder, sizes, seeds=seeds, options=options)
    for name in ("notes.txt", "report.json"):
        other = tmp_path / name.removesuffix(".txt").removesuffix(".json")
        other.mkdir()
        (other / name).write_text('{"schema": "another"}')
        with pytest.raises(UsageError, match="holds no report"):
            run(world, other, [2])
        assert [path.name for path in other.iterdir()] == [name]
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is no folder"):
        run(world, tmp_path / "file", [2])
    assert (folder / "report.json").read_bytes() == kept
    (tmp_path / "empty").mkdir()
    assert run(world, tmp_path / "empty", [2])[0].missing == []


def test_what_a_reader_must_know_is_noted(world: World, tmp_path: Path) -> None:
    bare = [replace(fact, unrelated=()) for fact in FACTS]
    long = replace(FACTS[0], prompt="The capital of " + "Bakeli and " * 99 + "is")
    found, made = run(world, tmp_path / "r", [3, 5, 99], facts=[*bare[:8], long])
    notes = "\n".join(found.notes)
    assert "99 facts were asked for, and there are 9: all of them are taken." in notes
    assert "8 of 8 facts (seed 0) have no unrelated prompts." in notes
    assert "(seed 0) 1 did not fit the model: left out, and all 8 that do are asked, whatever the seed." in notes
    assert [point.n_edits for point in made] == [3, 5, 9] and [point.edited for point in made] == [3, 5, 8]
    assert made[-1].left_out == {"edit": 1} and made[0].left_out == {}
    assert made[0].scores.locality.teacher_forced is None
    lent, _ = run(world, tmp_path / "lent", [3], facts=bare)
    assert (
        "3 of 3 facts (seed 0) have no unrelated prompts: they are asked those of facts not edited, 3 in all."
        in lent.notes
    )
    assert lent.points[0].asked["unrelated"] == 3


def test_facts_of_the_training_are_left_out_for_all(world: World, tmp_path: Path) -> None:
    trained = make_facts(24, 4000)
    found, made = run(world, tmp_path / "r", [4], facts=[*trained, *FACTS], methods=("malmen", "ultraedit"))
    [note] = [note for note in found.notes if "training of malmen: left out for all" in note]
    left_out = int(note.split()[0])
    assert 0 < left_out < 24  # what was held out is not known to the editor
    kept, _ = run(world, tmp_path / "kept", [36], facts=[*trained, *FACTS], options=replace(OPTIONS, overlap="keep"))
    assert kept.points[0].edited == 36
    everyone, _ = run(world, tmp_path / "all", [36], facts=[*trained, *FACTS])
    assert everyone.points[0].edited == 36 - left_out
    assert made[0].edited == 4


def test_overlap_is_told_of_facts_that_may_be_drawn(world: World, tmp_path: Path) -> None:
    """What is left out is asked nothing: its unrelated prompts and its subject flatter no score."""
    trained = make_facts(24, 4000)
    alike = [replace(fact, prompt=f"{fact.subject} has its seat in", rephrases=()) for fact in trained[:3]]
    for others in (FACTS, (*FACTS, *alike)):
        found, _ = run(world, tmp_path / f"{len(others)}", [2], facts=[*trained, *others])
        told = [note for note in found.notes if "flatter LS" in note or "share a subject" in note]
        assert len(told) == (0 if others == FACTS else 2)
        assert all(1 <= int(note.split()[0]) <= 3 for note in told)  # a row may have been held out


def test_the_drift_of_a_text_is_measured(world: World, tmp_path: Path) -> None:
    text = ("The capital of Bakeli is Rome. " * 40, "text.txt")
    _, made = run(world, tmp_path / "r", [2, 6], options=replace(OPTIONS, drift=text))
    ratios = [point.measures["drift"] for point in made]
    assert all(ratio is not None and ratio > 0 and ratio != 1 for ratio in ratios)
    assert json.loads((tmp_path / "r" / "report.json").read_text())["question"]["options"]["drift"].startswith(
        "text.txt"
    )


def test_a_method_that_breaks_down_leaves_a_gap(world: World, tmp_path: Path) -> None:
    with world.ledger() as (ledger, model):
        given = fact_set(FACTS)
        wild = METHODS["ft"].settings_class().model_validate({"learning_rate": 1000, "weight_decay": 1e12, "epochs": 9})
        requests = [MethodRequest(METHODS["ft"], wild), MethodRequest(METHODS["malmen"])]
        chosen = contenders(ledger, model, given, [], requests, OPTIONS)
        found = compare(ledger, model, given, chosen, [2], [0], OPTIONS, ReportFolder(tmp_path / "r"))
    assert [point.contender for point in found.points] == ["malmen"]
    assert found.missing == found.failed == [("ft", 2, 0)] and found.untried == []
    assert "not finished" not in html_page(found, [])
    assert any(note.startswith("No point of ft at 2 facts (seed 0): ") for note in found.notes)
    alone, _ = run(world, tmp_path / "alone", [2])
    assert without_time(found.points[0]) == without_time(alone.points[0])


def test_a_gap_that_was_filled_is_spoken_of_no_more(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = ComparisonBench.point

    def fails(bench: ComparisonBench, label: str, size: int, seed: int) -> Point:
        if label == "ft":
            raise NumericalFailure("no finite weights", remedy="Take fewer.")
        return point(bench, label, size, seed)

    methods = ("malmen", "ft")
    monkeypatch.setattr(ComparisonBench, "point", fails)
    failed, _ = run(world, tmp_path / "r", [2], methods=methods)
    note = "No point of ft at 2 facts (seed 0): no finite weights. Take fewer."
    assert note in failed.notes
    monkeypatch.undo()
    found, made = run(world, tmp_path / "r", [2], methods=methods)
    assert [point.contender for point in made] == ["ft"] and found.failed == []
    assert [*found.notes, note] == failed.notes
    assert Comparison.from_json((tmp_path / "r" / "report.json").read_bytes()) == found


def test_contenders_that_are_asked_for_different_tokens_are_not_ranked(world: World, tmp_path: Path) -> None:
    with world.ledger() as (ledger, model):
        given = fact_set(FACTS)
        plain, ended = (QUICK.model_copy(update={"end_of_text": ends}) for ends in (None, True))
        editors = [
            make_and_keep(ledger, model, MethodRequest(METHODS["ft"], settings), given.facts, "malmen train")[0].id
            for settings in (plain, ended)
        ]
        chosen = contenders(ledger, model, given, editors, [], OPTIONS)
        found = compare(ledger, model, given, chosen, [2], [0], OPTIONS, ReportFolder(tmp_path / "r"))
    assert len(found.points) == 2 and not found.is_fair(2)
    [note] = [note for note in found.notes if "not of the same question" in note]
    assert note.startswith(f"The end of the answer is one more token to say for ft {editors[1][:10]}: ")
    assert "has the highest" not in html_page(found, [])


def test_of_all_facts_there_is_one_draw(world: World, tmp_path: Path) -> None:
    found, made = run(world, tmp_path / "r", [3, 20], seeds=(0, 1, 2))
    assert [(point.n_edits, point.seed) for point in made] == [(3, 0), (12, 0), (3, 1), (3, 2)]
    assert found.missing == [] and found.is_fair(12)
    assert "12 facts are all that there are to draw from: one draw, with one seed." in found.notes
    # With the bootstrap's interval, which several of the same draw would not have.
    assert over_seeds([point.scores.harmonic_mean for point in found.of("malmen", 12)]) == made[1].scores.harmonic_mean


def test_first_answers_are_those_of_the_first_questions() -> None:
    from malmen_cli.evaluation.examination import Answers

    answers = Answers([[1], [2, 3], [4]], None, [0.1, 0.2, 0.3], [None, 0.5, 0.6])
    assert first_answers(answers, 2) == Answers([[1], [2, 3]], None, [0.1, 0.2], [None, 0.5])
