"""A model's folder that was moved is found again, a copied project edits its own copy; nothing else is taken over."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
from ledger_world import apply, fact, make_world, revert, tiny
from program import run_here
from safetensors_folders import file_digests

from malmen_cli.checkpoint.lock import checkpoint_lock
from malmen_cli.checkpoint.manifest import Manifest
from malmen_cli.checkpoint.patch import TensorChange, write_changes
from malmen_cli.errors import ExitCode, Locked, MalmenError, UsageError, WrongBase
from malmen_cli.ledger import Ledger, Workspace, move_model, store, transactions, verify_ledger, writing
from malmen_cli.ledger.recovery import recover
from malmen_cli.ledger.sidecar import read_sidecar

World = tuple[Workspace, Path]


@pytest.fixture
def world_unedited(tmp_path: Path) -> World:
    """A workspace and its checkpoint."""
    return make_world(tmp_path / "world")


@pytest.fixture
def world(world_unedited: World) -> World:
    """The same, edited once."""
    workspace, checkpoint = world_unedited
    with Ledger.open(workspace, writing=True) as ledger:
        apply(ledger, fact("a"))
    return workspace, checkpoint


def undo(ledger: Ledger) -> None:
    """Revert the newest entry."""
    with ledger.read() as db:
        entry = store.head(db, tiny(ledger).id)
    revert(ledger, entry)


def test_a_folder_that_was_moved(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    workspace, checkpoint = world
    moved = checkpoint.rename(checkpoint.with_name("elsewhere"))
    before = file_digests(moved)
    with Ledger.open(workspace, writing=True) as ledger, pytest.raises(WrongBase, match="is gone") as caught:
        undo(ledger)
    assert caught.value.remedy is not None and "malmen models move tiny FOLDER" in caught.value.remedy
    code, out, err = run_here(capfd, "models", "move", "tiny", moved, "--workspace", workspace.root)
    assert (code, out, err) == (ExitCode.DONE, f"tiny is at {moved} now.\n", "")
    assert file_digests(moved) == before
    # Where it is already: its name alone under -q.
    assert run_here(capfd, "models", "move", "tiny", moved, "-q", "--workspace", workspace.root)[1] == "tiny\n"
    with Ledger.open(workspace, writing=True) as ledger:
        assert verify_ledger(ledger).problems == []
        undo(ledger)
        assert verify_ledger(ledger).problems == []


def test_a_project_that_was_copied_edits_its_own_copy(world: World, tmp_path: Path) -> None:
    workspace, checkpoint = world
    shutil.copytree(tmp_path / "world", tmp_path / "copy")
    copied = Workspace(tmp_path / "copy" / workspace.root.name)
    own = tmp_path / "copy" / checkpoint.name
    original = file_digests(checkpoint)
    with Ledger.open(copied, writing=True) as ledger:
        with pytest.raises(WrongBase, match="is a copy"):
            undo(ledger)
        moved, settlement = move_model(ledger, tiny(ledger), own)
        assert (moved.path, settlement) == (own, None)
        sidecar = read_sidecar(own)
        assert sidecar is not None and sidecar["workspace"] == str(copied.root)
        undo(ledger)
        assert verify_ledger(ledger).problems == []
    assert file_digests(checkpoint) == original != file_digests(own)
    with Ledger.open(workspace, writing=True) as ledger:  # each goes its own way
        apply(ledger, fact("b"))
        assert verify_ledger(ledger).problems == []


@pytest.mark.parametrize("what", ["nothing", "a loop", "other bytes", "another model's"])
def test_nothing_else_is_taken_over(world: World, what: str, tmp_path: Path) -> None:
    workspace, checkpoint = world
    folder = tmp_path / "folder"
    error: type[MalmenError] = UsageError
    if what == "a loop":
        folder.symlink_to("folder")
    elif what != "nothing":
        shutil.copytree(checkpoint, folder)
        error = WrongBase
    if what == "other bytes":
        [shard, *_] = sorted(folder.glob("*.safetensors"))
        with shard.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last[0] ^ 1]))
    if what == "another model's":
        (folder / "config.json").write_text("{}")
    before = file_digests(folder) if folder.exists() else {}
    with Ledger.open(workspace, writing=True) as ledger:
        with pytest.raises(error) as refusal:
            move_model(ledger, tiny(ledger), folder)
        assert "name the folder that holds the model" in str(refusal.value.remedy)
        assert tiny(ledger).path == checkpoint.resolve()
        assert verify_ledger(ledger).problems == []
    assert not before or {n: d for n, d in file_digests(folder).items() if n in before} == before


def test_a_copy_of_before_any_edit_leaves_the_originals_sidecar(world_unedited: World, tmp_path: Path) -> None:
    workspace, checkpoint = world_unedited
    shutil.copytree(tmp_path / "world", tmp_path / "copy")
    copied = Workspace(tmp_path / "copy" / workspace.root.name)
    with Ledger.open(workspace, writing=True) as ledger:
        apply(ledger, fact("a"))
    before = file_digests(checkpoint)
    with Ledger.open(copied, writing=True) as ledger:
        recovery = recover(ledger, tiny(ledger), "malmen recover")
        assert isinstance(recovery.error, WrongBase) and "is a copy" in recovery.error.message
    assert file_digests(checkpoint) == before


def test_a_copy_of_before_any_edit_does_not_begin_with_the_originals_model(
    world_unedited: World, tmp_path: Path
) -> None:
    workspace, checkpoint = world_unedited
    shutil.copytree(tmp_path / "world", tmp_path / "copy")
    before = file_digests(checkpoint)
    copied = Workspace(tmp_path / "copy" / workspace.root.name)
    with Ledger.open(copied, writing=True) as ledger:
        with pytest.raises(WrongBase, match="is a copy"):
            apply(ledger, fact("a"))
        assert file_digests(checkpoint) == before
        move_model(ledger, tiny(ledger), tmp_path / "copy" / checkpoint.name)
        apply(ledger, fact("a"))
    assert file_digests(checkpoint) == before
    with Ledger.open(workspace, writing=True) as ledger:
        apply(ledger, fact("b"))


def test_a_copy_does_not_move_to_the_originals_folder(world: World, tmp_path: Path) -> None:
    workspace, checkpoint = world
    shutil.copytree(tmp_path / "world", tmp_path / "copy")
    before = file_digests(checkpoint)
    copied = Workspace(tmp_path / "copy" / workspace.root.name)
    with Ledger.open(copied, writing=True) as ledger, pytest.raises(WrongBase, match="is a copy"):
        move_model(ledger, tiny(ledger), checkpoint)
    assert file_digests(checkpoint) == before
    with Ledger.open(workspace, writing=True) as ledger:
        undo(ledger)


def test_a_refused_move_settles_nothing(tmp_path: Path) -> None:
    """Withdrawn by what another folder holds, an interrupted entry would be lost to the folder it was begun in."""
    workspace, checkpoint = make_world(tmp_path / "world", sharded=True)
    other = shutil.copytree(checkpoint, tmp_path / "other")
    (other / "config.json").write_text("{}")

    def killed(folder: Path, manifest: Manifest, changes: Sequence[TensorChange]) -> None:
        write_changes(folder, manifest, changes[:1])
        raise KeyboardInterrupt

    with Ledger.open(workspace, writing=True) as ledger:
        with patch.object(transactions, "write_changes", killed), pytest.raises(KeyboardInterrupt):
            apply(ledger, fact("a"))
        with pytest.raises(WrongBase, match=r"config\.json"):
            move_model(ledger, tiny(ledger), other)
        recovery = recover(ledger, tiny(ledger), "malmen recover")
        assert recovery.settlement is not None and recovery.settlement.outcome == "completed"
        assert recovery.differences == []
        apply(ledger, fact("b"))


def test_nobody_moves_a_model_that_is_being_written(world: World, tmp_path: Path) -> None:
    workspace, checkpoint = world
    other = shutil.copytree(checkpoint, tmp_path / "other")
    with Ledger.open(workspace, writing=True) as ledger:
        with checkpoint_lock(checkpoint, "malmen apply"), pytest.raises(Locked):
            move_model(ledger, tiny(ledger), other, timeout=0)
        assert tiny(ledger).path == checkpoint
        # Who looked the model up before the move does not write where it lay.
        before, stale = file_digests(checkpoint), tiny(ledger)
        move_model(ledger, tiny(ledger), other)
        with pytest.raises(Locked, match="was moved"), writing(ledger, stale, "malmen apply"):
            raise AssertionError("it was let in")
        assert file_digests(checkpoint) == before
