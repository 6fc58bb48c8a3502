"""What an apply registers at its first use of a folder, and what it does not: a model's folder that was moved."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors_folders import file_digests
from tiny_models import World, everything, make_facts, make_world, run_malmen, write_facts

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


def test_an_apply_without_an_editor_registers_nothing(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    facts = write_facts(tmp_path / "facts.jsonl", make_facts(2))
    folder = shutil.copytree(world.checkpoint, tmp_path / "another")
    before = everything(world)
    status, out, err = run_malmen(world, "apply", facts, "--model", folder)
    assert (status, out) == (ExitCode.USAGE, "") and "no model is registered" in err
    assert everything(world) == before
    status, _, err = run_malmen(world, "apply", facts, "--model", folder, "--method", "ultraedit")
    assert status in (0, 3) and "Registered" in err
    third = shutil.copytree(world.checkpoint, tmp_path / "third")
    status, _, err = run_malmen(world, "train", facts, "--model", third, "--method", "ultraedit")
    assert status == ExitCode.DONE and f"Registered {third} as third" in err
