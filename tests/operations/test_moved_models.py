"""A model's folder that was moved is not taken for another model."""

from __future__ import annotations

from pathlib import Path

from safetensors_folders import file_digests
from tiny_models import World, make_facts, make_world, run_malmen, write_facts

from malmen_cli.errors import ExitCode


def moved(world: World) -> Path:
    return world.checkpoint.rename(world.checkpoint.with_name("its new home"))


def test_an_edited_one_is_not_registered_again(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    base = file_digests(world.checkpoint)
    world.apply(*make_facts(2))
    folder = moved(world)
    facts = write_facts(tmp_path / "facts.jsonl", make_facts(1, start=7))
    for command in (
        ("models", "add", "other", folder),
        ("apply", facts, "--model", folder, "--method", "ultraedit"),
        ("train", facts, "--model", folder, "--steps", "1"),
    ):
        status, out, err = run_malmen(world, *command)
        assert (status, out) == (ExitCode.USAGE, "") and f"malmen models move tiny '{folder}'" in err
    assert run_malmen(world, "models", "list", "-q")[1] == "tiny\n"
    assert run_malmen(world, "models", "move", "tiny", folder)[0] == ExitCode.DONE
    assert run_malmen(world, "revert", "HEAD")[0] == ExitCode.DONE
    assert file_digests(folder) == base


def test_an_edited_copy_may_be_another_model(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    world.apply(*make_facts(2))
    assert run_malmen(world, "export", "--output", tmp_path / "copy")[0] == ExitCode.DONE
    assert run_malmen(world, "models", "add", "other", tmp_path / "copy")[0] == ExitCode.DONE
