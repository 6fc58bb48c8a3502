"""R8: plans that are stale or made up, splits whose file is none any more, trainings that somebody else began."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from refusal_world import RefusalWorld, run_program
from refusals import Case, Prepare

from malmen_cli.errors import ExitCode

WRONG, UNSAFE = ExitCode.WRONG_BASE, ExitCode.USAGE
ZEROS = "sha256:" + "0" * 64
DEEP = '{"a": ' + "[" * 99_999 + "]" * 99_999 + "}"


# Plans, splits -------------------------------------------------------------------------------------------------------


def plan(change: Callable[[dict[str, Any]], object]) -> Prepare:
    def prepare(world: RefusalWorld) -> None:
        path = world.home / "plan.json"
        said = json.loads(path.read_text())
        change(said)
        path.write_text(json.dumps(said))

    return prepare


def planned(**values: object) -> Prepare:
    return plan(lambda said: said.update(values))


def plan_text(text: str | bytes) -> Prepare:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda world: (world.home / "plan.json").write_bytes(data)  # type: ignore[return-value]


def huge_plan(world: RefusalWorld) -> None:
    os.truncate(world.home / "plan.json", (128 << 20) + 1)


def moved_on(world: RefusalWorld) -> None:
    assert run_program([*world.arguments("revert HEAD"), "-q"]) == ExitCode.DONE
    with world.database():
        pass


def strange_plan(name: str, prepare: Prepare, words: str, code: ExitCode = UNSAFE) -> Case:
    return Case(name, prepare, ("apply --plan",), code, words)


def file(name: str, make: Callable[[Path], object]) -> Prepare:
    def prepare(world: RefusalWorld) -> None:
        (world.home / name).unlink()
        make(world.home / name)

    return prepare


PLANS = [
    strange_plan("stale", moved_on, "has come since", WRONG),
    strange_plan("of another model", planned(model="other"), "stale", WRONG),
    strange_plan("of another base", planned(base=ZEROS), "another base or editor", WRONG),
    strange_plan("of another editor", planned(editor="other"), "stale", WRONG),
    strange_plan("of another head", planned(head=ZEROS), "stale", WRONG),
    strange_plan("of other active facts", planned(active_digest=ZEROS), "stale", WRONG),
    strange_plan("with an edited fact", plan(lambda said: said["facts"][0].update(target="Elsewhere")), "changed"),
    strange_plan("with a fact left out", plan(lambda said: said["facts"].pop()), "its facts were changed"),
    strange_plan("with a fact twice", plan(lambda said: said["facts"].append(said["facts"][0])), "were changed"),
    strange_plan("with no facts", planned(facts=[]), "unusable: facts"),
    strange_plan("with facts of another kind", planned(facts=["a"]), "unusable: facts"),
    strange_plan("with a control character", planned(source="\x1b]0;x\x07"), "unusable: source"),
    strange_plan("with a name of control characters", planned(model="\x1b[2J"), "unusable: model"),
    strange_plan("with a path for a digest", planned(head="../x"), "unusable: head"),
    strange_plan("with a negative count", planned(duplicates=-1), "unusable: duplicates"),
    strange_plan("of another format", planned(malmen_plan=2), "malmen_plan"),
    strange_plan("that is no JSON", plan_text("{"), "is not a saved plan"),
    strange_plan("that is no text", plan_text(b"\xff\xfe\0"), "is not a saved plan"),
    strange_plan("nested too deeply", plan_text(DEEP), "is not a saved plan"),
    strange_plan("that is huge", huge_plan, "too large"),
    strange_plan("that is endless", file("plan.json", lambda path: path.symlink_to("/dev/zero")), "too large"),
    strange_plan("that is a folder", file("plan.json", Path.mkdir), "cannot read"),
    *(
        Case(f"a split's file now {what}", file("facts.jsonl", make), ("apply --split",), UNSAFE, "is not there")
        for what, make in [
            ("a pipe", os.mkfifo),
            ("a folder", Path.mkdir),
            ("a device", lambda path: path.symlink_to("/dev/zero")),
            ("nowhere", lambda path: path.symlink_to("nowhere")),
        ]
    ),
    Case("a split of a pipe", file("facts.jsonl", os.mkfifo), ("data add",), UNSAFE, "not a file that can be read"),
]


@pytest.mark.parametrize("case", PLANS, ids=str)
def test_plans_and_splits(case: Case, refuse: Callable[[str, Case], None]) -> None:
    refuse("plans and splits", case)


def test_a_plan_never_replaces_another_file(refuse: Callable[[str, Case], None]) -> None:
    def prepare(world: RefusalWorld) -> None:
        (world.home / "new-plan.json").write_text("my thesis")

    refuse("plans and splits", Case("a file in a plan's place", prepare, ("plan -o",), UNSAFE, "is not a plan"))


# Trainings -----------------------------------------------------------------------------------------------------------


def state(change: Callable[[Path], object]) -> Prepare:
    return lambda world: change(world.training_run / "state.safetensors")  # type: ignore[return-value]


def resaved(change: Callable[[dict[str, Any], dict[str, str]], object]) -> Prepare:
    def in_file(path: Path) -> None:
        from safetensors import safe_open
        from safetensors.torch import save_file

        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
            said = dict(file.metadata())
        change(tensors, said)
        save_file(tensors, path, said)

    return state(in_file)


def progress(**values: object) -> Prepare:
    def change(tensors: object, said: dict[str, str]) -> None:
        said["progress"] = json.dumps(json.loads(said["progress"]) | values)

    return resaved(change)


def put(prefix: str, value: Callable[[Any], Any]) -> Prepare:
    def change(tensors: dict[str, Any], said: Mapping[str, str]) -> None:
        name = next(name for name in sorted(tensors) if name.startswith(prefix) and tensors[name].is_floating_point())
        tensors[name] = value(tensors[name]).contiguous()

    return resaved(change)


def run_folder_linked(world: RefusalWorld) -> None:
    run = world.training_run
    run.rename(world.home / "moved")
    run.symlink_to(world.home / "moved")


def nan(tensor: Any) -> Any:
    tensor.view(-1)[0] = float("nan")
    return tensor


STATES = [
    Case(f"a state {name}", prepare, ("train --resume",), UNSAFE, words)
    for name, prepare, words in [
        ("that is not there", state(Path.unlink), "no interrupted run"),
        ("that is a pipe", state(lambda path: (path.unlink(), os.mkfifo(path))), "no interrupted run"),
        ("that is a link", state(lambda path: (path.rename(f"{path}x"), path.symlink_to(f"{path}x"))), "link"),
        ("in a folder that is a link", run_folder_linked, "link"),
        ("that is garbage", state(lambda path: path.write_bytes(b"garbage " * 1000)), "Train anew"),
        ("that is a pickle", state(lambda path: path.write_bytes(b"\x80\4.")), "Train anew"),
        ("cut short", state(lambda path: os.truncate(path, 2000)), "Train anew"),
        ("without progress", resaved(lambda tensors, said: said.clear()), "Train anew"),
        ("with progress of other types", progress(step="many"), "Train anew"),
        ("with unknown progress", progress(strange=1), "Train anew"),
        ("with a negative step", progress(step=-1), "Train anew"),
        ("with a NaN in the editor", put("editor.", nan), "not finite"),
        ("with a NaN in the best editor", put("best.", nan), "not finite"),
        ("with a NaN in the optimiser", put("optimizer.0.exp_avg", nan), "Train anew"),
        ("of another shape", put("editor.networks", lambda tensor: tensor[:, :-1]), "wanted"),
        ("of another optimiser", put("optimizer.0.exp_avg", lambda tensor: tensor[:-1]), "Train anew"),
    ]
]


@pytest.mark.parametrize("case", STATES, ids=str)
def test_a_strangers_training(case: Case, refuse: Callable[[str, Case], None]) -> None:
    refuse("interrupted trainings", case)
