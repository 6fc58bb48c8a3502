"""`malmen recover`: what a killed command left half done is settled, and the checkpoint's state is said."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from ledger_world import lose
from safetensors_folders import file_digests
from tiny_models import TINY_TRAINING, Fact, World, fact_set, make_facts, make_world, run_malmen

from malmen_cli.checkpoint.durable import TEMPORARY
from malmen_cli.checkpoint.lock import checkpoint_lock
from malmen_cli.checkpoint.safetensors_file import read_header
from malmen_cli.cli.main import app
from malmen_cli.errors import MalmenError
from malmen_cli.ledger import Ledger, create_workspace, objects, store
from malmen_cli.ledger.recovery import recover
from malmen_cli.operations.models import register
from malmen_cli.operations.train import train_editor


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path, sharded=True)


def killed(world: World, module: str, name: str, *, after: int, facts: Sequence[Fact] = ()) -> None:
    """An apply in a process of its own that dies by SIGKILL at a call of a function, after so many whole ones."""
    child = os.fork()
    if child == 0:
        try:
            patch, calls = pytest.MonkeyPatch(), []
            whole: Callable[..., object] = getattr(__import__(module, fromlist=[name]), name)

            def dying(*arguments: object, **options: object) -> object:
                calls.append(1)
                if len(calls) > after:
                    os.kill(os.getpid(), signal.SIGKILL)
                return whole(*arguments, **options)

            patch.setattr(f"{module}.{name}", dying)
            world.apply(*(facts or make_facts(2)))
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_nothing_to_settle(world: World) -> None:
    code, out, err = run_malmen(world, "recover")
    assert (code, out, err) == (0, "tiny: nothing to settle\n", "")
    code, out, _ = run_malmen(world, "recover", "--json")
    nothing: dict[str, object] = {"leftovers": [], "restored": [], "kept": [], "differences": [], "error": None}
    assert json.loads(out) == [{"model": "tiny", "settled": None, **nothing}]
    assert run_malmen(world, "recover", "-q")[:2] == (0, "")


def test_an_entry_that_touched_nothing_is_withdrawn(world: World) -> None:
    before = file_digests(world.checkpoint)
    killed(world, "malmen_cli.ledger.transactions", "write_changes", after=0)
    code, out, _ = run_malmen(world, "recover", "--model", "tiny")
    assert code == 0 and out.startswith("tiny: the interrupted apply ") and "was withdrawn" in out
    assert file_digests(world.checkpoint) == before
    assert run_malmen(world, "verify", "-q")[0] == 0


def test_an_entry_with_a_shard_written_is_completed(world: World) -> None:
    killed(world, "malmen_cli.checkpoint.patch", "patch_shard", after=1)
    (world.checkpoint / f"{TEMPORARY}0").write_bytes(b"half a shard")
    code, out, _ = run_malmen(world, "recover", "--json")
    [said] = json.loads(out)
    assert code == 0 and said["settled"]["outcome"] == "completed" and said["settled"]["kind"] == "apply"
    assert said["leftovers"] == [f"{TEMPORARY}0"] and said["differences"] == []
    assert run_malmen(world, "log", "-q")[1].split()[0] == said["settled"]["entry"]
    assert run_malmen(world, "verify", "-q")[0] == 0


def test_the_settled_entrys_id_alone(world: World) -> None:
    killed(world, "malmen_cli.checkpoint.patch", "patch_shard", after=1)
    code, out, _ = run_malmen(world, "recover", "-q")
    assert code == 0 and out.split() == run_malmen(world, "log", "-q")[1].split()[:1]


def test_a_checkpoint_that_is_not_the_heads_is_13_and_located(world: World) -> None:
    config = world.checkpoint / "config.json"
    config.write_text(config.read_text() + " ")
    code, out, err = run_malmen(world, "recover")
    assert code == 13 and "config.json was changed" in out and "not as its ledger left it" in err
    assert json.loads(run_malmen(world, "recover", "--json")[1])[0]["differences"]


@pytest.fixture
def edited(world: World) -> dict[str, str]:
    """Digests of the base's files; the world is edited then."""
    before = file_digests(world.checkpoint)
    shutil.copytree(world.checkpoint, world.checkpoint.with_name("base"))
    world.apply(*make_facts(2))
    return before


def test_the_base_over_an_edited_checkpoint_is_written_over(world: World, edited: dict[str, str]) -> None:
    held = file_digests(world.checkpoint)
    for path in world.checkpoint.with_name("base").glob("*.safetensors"):
        shutil.copy(path, world.checkpoint)
    (world.checkpoint / ".malmen.json").unlink()
    assert run_malmen(world, "revert", "HEAD")[0] == 13
    code, out, err = run_malmen(world, "recover", "--restore")
    assert code == 0 and "tensors restored" in out and not err
    assert file_digests(world.checkpoint) == held
    assert run_malmen(world, "recover", "--restore")[1] == "tiny: nothing to settle\n"
    assert run_malmen(world, "revert", "HEAD")[0] == 0
    assert file_digests(world.checkpoint) == edited


@pytest.mark.parametrize("shards", [0, 1])
def test_an_interrupted_entry_that_something_else_wrote_over_starts_again(
    world: World, edited: dict[str, str], shards: int
) -> None:
    held = file_digests(world.checkpoint)
    killed(world, "malmen_cli.checkpoint.patch", "patch_shard", after=shards, facts=make_facts(2, start=2))
    for path in world.checkpoint.with_name("base").glob("*.safetensors"):
        shutil.copy(path, world.checkpoint)
    code, _, err = run_malmen(world, "recover")
    assert code == 13 and "neither as before nor as after the interrupted apply" in err and "--restore" in err
    code, out, err = run_malmen(world, "recover", "--restore")
    assert code == 0 and "was withdrawn" in out and "tensors restored" in out and not err
    assert file_digests(world.checkpoint) == held
    assert run_malmen(world, "revert", "HEAD")[0] == 0
    assert file_digests(world.checkpoint) == edited


@pytest.mark.parametrize("how", ["removed", "damaged"])
def test_what_the_ledger_lost_of_the_head_is_kept_again(world: World, edited: dict[str, str], how: str) -> None:
    with world.ledger() as (ledger, model), ledger.read() as db:
        path = ledger.objects.path(next(iter(store.state(db, model.id).values())))
    lose(path, how)
    if how == "removed":
        code, _, err = run_malmen(world, "revert", "HEAD")
        assert code == 12 and "malmen recover --restore" in err
    assert run_malmen(world, "verify", "-q")[0] == 12
    code, out, _ = run_malmen(world, "recover", "--restore")
    assert code == 0 and "1 tensor that the ledger had lost kept again" in out
    assert run_malmen(world, "verify", "-q")[0] == 0
    assert run_malmen(world, "revert", "HEAD")[0] == 0
    assert file_digests(world.checkpoint) == edited


@pytest.mark.parametrize("how", ["removed", "damaged"])
def test_so_is_what_it_lost_of_a_base_that_was_never_edited(world: World, how: str) -> None:
    with world.ledger() as (ledger, model):
        with ledger.read() as db:
            tensors = store.base_tensors(db, model.id)
        for tensor in tensors:
            lose(ledger.objects.path(model.manifest.tensors[tensor].digest), how)
    code, out, _ = run_malmen(world, "recover", "--restore")
    assert code == 0 and "tensors that the ledger had lost kept again" in out
    assert run_malmen(world, "verify", "-q")[0] == 0
    world.apply(*make_facts(2))
    world.revert("HEAD")


def test_another_ledgers_edits_are_not_written_over(world: World, edited: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    other = World(create_workspace(tmp_path / "elsewhere"), world.checkpoint)
    with Ledger.open(other.workspace, writing=True) as ledger:
        model = register(ledger, "tiny", world.checkpoint).model
        train_editor(ledger, model, fact_set(make_facts(24, 4000)), TINY_TRAINING)
    other.apply(*make_facts(2, start=2))
    held = file_digests(world.checkpoint)
    code, _, err = run_malmen(world, "recover", "--restore")
    assert code == 13 and str(other.workspace.root) in err and "would be lost" in err
    assert file_digests(world.checkpoint) == held
    other.revert("HEAD")
    assert run_malmen(world, "revert", "HEAD")[0] == 0
    assert file_digests(world.checkpoint) == edited


@pytest.mark.parametrize("what", ["config.json", "another tensor", "a header", "a shard"])
def test_what_the_ledger_does_not_keep_is_not_half_restored(world: World, edited: dict[str, str], what: str) -> None:
    """Beside a change that could be taken back."""
    shards = sorted(world.checkpoint.glob("*.safetensors"))
    [first] = (shard for shard in shards if "transformer.wte.weight" in read_header(shard).slots)
    second = next(s for s in shards if any("c_proj" in name for name in read_header(s).slots) and s != first)
    shutil.copy(world.checkpoint.with_name("base") / second.name, second)
    name, offset = {
        "config.json": (world.checkpoint / "config.json", 0),
        "another tensor": (first, read_header(first).slots["transformer.wte.weight"].start),
        "a header": (first, 9),
        "a shard": (first, 0),
    }[what]
    if what == "a shard":
        name.unlink()
    else:
        with name.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)
            file.seek(offset)
            file.write(bytes([byte[0] ^ 1]))
    before = file_digests(world.checkpoint)
    code, out, err = run_malmen(world, "recover", "--restore")
    assert code == 13 and "restored" not in out and "cannot be restored" in err and name.name in err
    assert file_digests(world.checkpoint) == before


def test_a_locked_checkpoint_is_11(world: World) -> None:
    with checkpoint_lock(world.checkpoint, "malmen apply"):
        code, out, err = run_malmen(world, "recover")
        assert code == 11 and not out and "malmen apply" in err
        assert json.loads(run_malmen(world, "recover", "--json")[1])[0]["error"]


def test_an_unknown_model_is_2(world: World) -> None:
    assert run_malmen(world, "recover", "--model", "other")[0] == 2


def test_what_the_system_cannot_read_keeps_no_other_model_from_its_settlement(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/mnt/gone")

    with world.ledger() as (ledger, model), monkeypatch.context() as patched:
        patched.setattr("malmen_cli.ledger.recovery.held_checkpoint", unreadable)
        found = recover(ledger, model, "malmen recover")
    assert found.error is not None and found.error.message == "/mnt/gone cannot be read: Permission denied"
    assert found.error.remedy


def test_an_object_that_cannot_be_read_is_kept_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.apply(*make_facts(2))
    with world.ledger() as (ledger, model):
        with ledger.read() as db:
            digest = next(iter(store.state(db, model.id).values()))
        bad, whole = ledger.objects.path(digest), objects.digest_file
        inode = bad.stat().st_ino

        def failing(path: Path, *part: int) -> str:
            if path == bad and bad.stat().st_ino == inode:
                raise OSError(5, "Input/output error")
            return whole(path, *part)

        with monkeypatch.context() as patched:
            patched.setattr(objects, "digest_file", failing)
            found = recover(ledger, model, "malmen recover --restore", restore=True)
        assert found.error is None and len(found.kept) == 1
        assert bad.stat().st_ino != inode and ledger.objects.is_sound(digest)


def test_a_database_that_cannot_be_used_just_now_is_not_called_damaged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MalmenError("cannot use ledger.db: disk I/O error", remedy="check the disk's free space")

    monkeypatch.setattr(Ledger, "open", full)
    with pytest.raises(MalmenError, match="disk I/O error"):
        app(["verify", "--workspace", str(world.workspace.root)], standalone_mode=False)
