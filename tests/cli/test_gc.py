"""`malmen gc`: only what is named goes, nobody is surprised, and every revert stays possible, to the same bytes."""

from __future__ import annotations

import json
import os
import pty
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors_folders import file_digests
from tiny_models import TINY_TRAINING, World, environment, fact_set, make_fact, make_facts, make_world, run_malmen

from malmen_cli.checkpoint.lock import checkpoint_lock
from malmen_cli.errors import UsageError
from malmen_cli.ledger import Workspace, store, verify_ledger
from malmen_cli.ledger.collection import collect, collectable
from malmen_cli.operations.train import train_editor


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two applies; an object that nothing refers to."""
    folder = tmp_path_factory.mktemp("world")
    world = make_world(folder)
    world.apply(*make_facts(3))
    world.apply(*make_facts(3, start=3))
    with world.ledger() as (ledger, _):
        ledger.objects.put(b"nobody's")
    return folder


@pytest.fixture
def world(made: Path) -> World:
    """The same world every time: a test that changes it puts it back by copying."""
    saved = made.with_name("saved")
    if not saved.exists():
        shutil.copytree(made, saved)
    shutil.rmtree(made)
    shutil.copytree(saved, made)
    return World(Workspace(made / ".malmen"), made / "model")


def gc_json(world: World, *arguments: str) -> dict[str, object]:
    code, out, err = run_malmen(world, "gc", "--json", *arguments)
    assert code == 0, err
    said: dict[str, object] = json.loads(out)
    return said


class TestAsking:
    def test_without_a_scope_it_shows_what_each_would_free(self, world: World) -> None:
        before = file_digests(world.workspace.objects)
        code, out, err = run_malmen(world, "gc")
        assert code == 0 and "Nothing was dropped" in err
        for scope in ("leftovers", "training", "states", "editors"):
            assert f"--{scope} " in out
        assert "1 item, 8 bytes" in out
        assert gc_json(world) == gc_json(world, "--dry-run")
        assert run_malmen(world, "gc", "-q")[1] == run_malmen(world, "gc", "--dry-run", "-q")[1]
        assert "--leftovers" not in run_malmen(world, "gc", "--model", "tiny")[1]
        assert run_malmen(world, "gc", "--yes")[0] == 2  # whoever says so wants something dropped
        assert file_digests(world.workspace.objects) == before

    def test_without_a_terminal_it_needs_yes(self, world: World) -> None:
        before = file_digests(world.workspace.objects)
        code, out, err = run_malmen(world, "gc", "--leftovers")
        assert code == 2 and not out and "--yes" in err
        assert file_digests(world.workspace.objects) == before
        code, out, _ = run_malmen(world, "gc", "--leftovers", "--yes")
        assert (code, out) == (0, "Dropped 1 item, 8 bytes.\n")
        code, out, _ = run_malmen(world, "gc", "--leftovers")
        assert (code, out) == (0, "There is nothing to drop.\n")

    @pytest.mark.parametrize("answer, code, left", [("y", 0, 0), ("n", 1, 1), ("", 1, 1)])
    def test_on_a_terminal_it_asks(self, world: World, answer: str, code: int, left: int) -> None:
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "malmen_cli", "gc", "--leftovers", "--workspace", str(world.workspace.root)]
        with subprocess.Popen(command, stdin=theirs, stderr=subprocess.PIPE, env=environment(), text=True) as process:
            os.write(ours, f"{answer}\n".encode())
            _, err = process.communicate(timeout=60)
        os.close(ours)
        os.close(theirs)
        assert process.returncode == code, err
        assert "which nothing refers to" in err and "Drop 1 item, 8 bytes for good?" in err
        assert len(gc_json(world, "--leftovers", "--dry-run")["items"]) == left  # type: ignore[arg-type]

    def test_a_dry_run_lists_and_drops_nothing(self, world: World) -> None:
        before = file_digests(world.workspace.root / "objects")
        said = gc_json(world, "--leftovers", "--states", "--dry-run")
        assert said["dry_run"] is True and {item["scope"] for item in said["items"]} == {"leftovers", "states"}  # type: ignore[attr-defined]
        assert said["bytes"] == sum(item["bytes"] for item in said["items"])  # type: ignore[attr-defined]
        code, out, _ = run_malmen(world, "gc", "--states", "--dry-run")
        assert code == 0 and "a past state of " in out and out.endswith("Nothing was dropped.\n")
        assert file_digests(world.workspace.root / "objects") == before

    def test_of_every_scope(self, world: World) -> None:
        every = gc_json(world, "--dry-run")["items"]
        of_two = gc_json(world, "--leftovers", "--states", "--dry-run")["items"]
        assert {item["name"] for item in of_two} <= {item["name"] for item in every}  # type: ignore[attr-defined]
        code, out, _ = run_malmen(world, "gc", "--dry-run", "-q")
        assert code == 0 and out.split() == [item["name"] for item in every]  # type: ignore[attr-defined]

    def test_ids_alone(self, world: World) -> None:
        items = gc_json(world, "--states", "--dry-run")["items"]
        code, out, _ = run_malmen(world, "gc", "--states", "--yes", "-q")
        assert code == 0 and out.split() == [item["name"] for item in items]  # type: ignore[attr-defined]
        assert run_malmen(world, "verify", "-q")[0] == 0

    def test_leftovers_belong_to_no_model(self, world: World) -> None:
        assert run_malmen(world, "gc", "--leftovers", "--model", "tiny", "--dry-run")[0] == 2
        assert gc_json(world, "--states", "--model", "tiny", "--dry-run")["items"]

    def test_a_locked_checkpoint_is_11(self, world: World) -> None:
        before = file_digests(world.workspace.objects)
        with checkpoint_lock(world.checkpoint, "malmen apply"):
            code, out, _ = run_malmen(world, "gc", "--states", "--yes")
        assert code == 11 and not out
        assert file_digests(world.workspace.objects) == before


def test_an_interrupted_training_is_named_and_goes(world: World) -> None:
    class Killed(BaseException):
        pass

    def die(report: StepReport) -> None:
        if report.step == 2:
            raise Killed

    from malmen_cli.training.loop import StepReport, Watcher

    with world.ledger() as (ledger, model), pytest.raises(Killed):
        settings = TINY_TRAINING.model_copy(update={"seed": 7, "save_every": 1})
        train_editor(ledger, model, fact_set(make_facts(24)), settings, watcher=Watcher(step=die))
    [item] = gc_json(world, "--training", "--dry-run", "--model", "tiny")["items"]  # type: ignore[misc]
    assert item["what"].startswith("an interrupted training of tiny on facts.jsonl, begun ")  # type: ignore[index]
    assert gc_json(world, "--training", "--yes")["bytes"] == item["bytes"]  # type: ignore[index]
    assert list(world.workspace.training.iterdir()) == []


def test_what_is_no_run_is_left_where_runs_lie(world: World) -> None:
    world.workspace.training.mkdir(exist_ok=True)
    (world.workspace.training / ".DS_Store").write_text("")
    (world.workspace.training / "link").symlink_to(world.checkpoint)
    assert gc_json(world, "--training", "--yes")["items"] == []
    assert len(list(world.workspace.training.iterdir())) == 2


@pytest.mark.parametrize("seed", range(3))
def test_any_history_gives_the_same_bytes_with_gc_as_without(tmp_path: Path, seed: int) -> None:
    """The same random applies and reverts, in one world with gc after each: states are solved again from rows."""
    plain = make_world(tmp_path / "plain", sharded=bool(seed % 2), dtype=("float32", "bfloat16", "float32")[seed])
    base = file_digests(plain.checkpoint)
    shutil.copytree(tmp_path / "plain" / ".malmen", tmp_path / "collected" / ".malmen")
    shutil.copytree(plain.checkpoint, tmp_path / "collected" / "model")
    collected = World(Workspace(tmp_path / "collected" / ".malmen"), tmp_path / "collected" / "model")
    with collected.ledger() as (ledger, _), ledger.write() as db:
        db.execute("UPDATE models SET path = ?", (str(collected.checkpoint.resolve()),))
    chance, entries, dropped, solved = random.Random(seed), 0, 0, 0
    for _ in range(14):
        number = chance.randrange(2, entries + 2) if entries and chance.random() < 0.6 else None
        facts = [make_fact(i, chance.choice(("Paris", "Rome"))) for i in chance.sample(range(3), 2)]
        if number is None:
            plain.apply(*facts)
            collected.apply(*facts)
        else:
            from_objects = not revert(plain, number)
            solved += revert(collected, number) and from_objects
        with plain.ledger() as (ledger, model), ledger.read() as db:
            entries = store.head(db, model.id).number - 1
        with collected.ledger() as (ledger, _):
            dropped += len(collect(ledger, collectable(ledger, ["states"]), "malmen gc"))
            assert verify_ledger(ledger).problems == []
        assert _weights(collected.checkpoint) == _weights(plain.checkpoint)
    assert dropped and solved
    with collected.ledger() as (ledger, model), ledger.read() as db:
        applies = [entry.number for entry in store.entries(db, model.id) if entry.kind == "apply"]
    for number in applies:
        revert(collected, number)
    assert file_digests(collected.checkpoint) == base


def revert(world: World, number: int) -> bool:
    """Whether something was solved again for it; an entry that is out already stays out."""
    try:
        return world.revert(f"#{number}").solved
    except UsageError as error:
        assert "reverted already" in error.message
        return False


def _weights(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in file_digests(folder).items() if not name.startswith(".")}
