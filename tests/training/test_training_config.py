"""Settings: recipe, then file, then flags; whatever is unknown or impossible is an error in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from malmen_cli.config import PAPER, TrainingConfig, resolve_training
from malmen_cli.errors import UsageError


def test_flags_win_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    file.write_text('{"learning_rate": 0.5, "clip": 2, "editor": {"rank": 3}, "editor.blocks": 4}')
    flags = {"clip": 3.0, "editor.rank": 5, "locality": None}
    settings = resolve_training("paper", file, flags)
    assert (settings.learning_rate, settings.clip, settings.locality) == (0.5, 3.0, 1.0)
    assert (settings.editor.rank, settings.editor.blocks) == (5, 4)
    assert settings.editor.step_size == "linear"  # the recipe's, which neither file nor flag names
    assert resolve_training("paper", None, {}).editor.rank == 1920  # a resolution leaves the recipe as it was


def test_toml_says_the_same_as_json(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"steps": 7, "sample_size": false, "editor": {"initial_change": 0.2}}')
    (tmp_path / "s.toml").write_text("steps = 7\nsample_size = false\n[editor]\ninitial_change = 0.2\n")
    by_json, by_toml = (resolve_training("malmen", tmp_path / name, {}) for name in ("s.json", "s.toml"))
    assert by_json == by_toml == TrainingConfig(steps=7, sample_size=False, editor={"initial_change": 0.2})


def test_the_resolved_configuration_reads_back_as_itself(tmp_path: Path) -> None:
    settings = resolve_training("paper", None, {"steps": 3})
    (tmp_path / "s.json").write_text(settings.model_dump_json())
    assert resolve_training(None, tmp_path / "s.json", {}) == settings


def test_a_limit_by_flag_takes_the_place_of_the_files(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    for text, flags, steps, minutes in [
        ('{"steps": 3}', {"minutes": 0.2}, None, 0.2),
        ('{"minutes": 5}', {"steps": 4, "minutes": None}, 4, None),
        ('{"steps": 3, "minutes": 5}', {"steps": 4, "minutes": 6}, 4, 6),
        ('{"steps": 3}', {"clip": 2, "minutes": None}, 3, None),
    ]:
        file.write_text(text)
        settings = resolve_training("malmen", file, flags)
        assert (settings.steps, settings.minutes) == (steps, minutes)


def test_the_recipe_is_where_settings_start_whoever_names_it(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    paper = resolve_training("paper", None, {"clip": 2.0})
    file.write_text('{"recipe": "paper", "clip": 2}')
    assert resolve_training(None, file, {}) == paper
    assert resolve_training("malmen", file, {}) == TrainingConfig(clip=2)
    file.write_text('{"recipe": "malmen", "clip": 2}')
    assert resolve_training("paper", file, {}) == paper
    assert resolve_training(None, file, {}) == resolve_training(None, None, {"clip": 2}) == TrainingConfig(clip=2)


def test_the_paper_recipe_is_the_papers() -> None:
    settings = resolve_training("paper", None, {})
    assert settings.model_dump(include=set(PAPER)) | {"editor": PAPER["editor"]} == PAPER
    assert (settings.editor.preserved_keys, settings.reduction, settings.clip) == (0, "batch", 1.0)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"learning_rat": 1}', "learning_rat"),
        ('{"editor": {"rnk": 1}}', "editor.rnk"),
        ('{"editor.rnk": 1}', "editor.rnk"),
        ('{"clip": -1}', "clip"),
        ('{"recipe": "own"}', "recipe"),
        ('{"recipe": ["paper"]}', "recipe"),
        ('{"clip": NaN}', "clip"),
        ('{"held_out": 1}', "held_out"),
        ('{"steps": "many"}', "steps"),
        ('{"steps": "7"}', "steps"),
        ('{"steps": true}', "steps"),
        ('{"sample_size": "yes"}', "sample_size"),
        ('{"editor": 3}', "editor"),
        ('{"editor": 3, "editor.rank": 3}', "editor"),
        ('{"clip": {"value": 1}}', "clip"),
        ('{"facts_per_step": 9223372036854775808}', "facts_per_step"),
        ('{"editor_rows": 100000000000000000000}', "editor_rows"),
        ('{"learning_rate": 1e308}', "learning_rate"),
        ('{"editor.initial_power": 1e300}', "editor.initial_power"),
        ("[1, 2]", "no table"),
        ("{", "s.json"),
    ],
)
def test_what_cannot_be_meant_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(UsageError, match=named):
        resolve_training(None, tmp_path / "s.json", {})


def test_whoever_misspells_a_setting_is_told_all_there_are() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_training(None, None, {"lerning_rate": 1})
    assert caught.value.remedy is not None
    assert caught.value.remedy.startswith("Training settings are ")
    assert {"warmup,", "max_held_out,", "editor.initial_power,"} <= set(caught.value.remedy.split())


def test_a_problem_says_what_was_meant_or_what_was_given() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_training(None, None, {"facts_per_setp": 8, "warmup": -1, "editor.rank": "wide", "mniutes": None})
    assert caught.value.message == (
        "training settings: editor.rank should be a valid integer, not 'wide'; "
        "warmup should be greater than or equal to 0, not -1; "
        "no setting is called facts_per_setp, did you mean facts_per_step?"
    )
    with pytest.raises(UsageError, match=r"^training settings: clip should be greater than 0, not -1$") as caught:
        resolve_training(None, None, {"clip": -1})
    assert caught.value.remedy == "Change the value, or leave it out for the default."


def test_whole_numbers_may_be_written_otherwise(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("steps = 1e3\nclip = 2\neditor.rank = 1_0.0\n")
    settings = resolve_training(None, tmp_path / "s.toml", {})
    assert (settings.steps, settings.clip, settings.editor.rank) == (1000, 2.0, 10)
    assert [type(x) for x in (settings.steps, settings.clip, settings.editor.rank)] == [int, float, int]
    with pytest.raises(UsageError, match=r"steps should be a valid integer, not 1\.5"):
        resolve_training(None, None, {"steps": 1.5})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.toml"):
        resolve_training("malmen", tmp_path / "absent.toml", {})
