"""A model's folder that was moved is found again, a copied project edits its own copy; nothing else is taken over."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from ledger_world import apply, fact, make_world, revert, tiny
from program import run_here
from safetensors_folders import file_digests

from malmen_cli.errors import ExitCode, UsageError, WrongBase
from malmen_cli.ledger import Ledger, Workspace, move_model, store, verify_ledger
from malmen_cli.ledger.sidecar import read_sidecar


@pytest.fixture
def world(tmp_path: Path) -> tuple[Workspace, Path]:
    """A workspace and its checkpoint, edited once."""
    workspace, checkpoint = make_world(tmp_path / "world")
    with Ledger.open(workspace, writing=True) as ledger:
        apply(ledger, fact("a"))
    return workspace, checkpoint


def undo(ledger: Ledger) -> None:
    """Revert the newest entry."""
    with ledger.read() as db:
        entry = store.head(db, tiny(ledger).id)
    revert(ledger, entry)


def test_a_folder_that_was_moved(world: tuple[Workspace, Path], capfd: pytest.CaptureFixture[str]) -> None:
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


def test_a_project_that_was_copied_edits_its_own_copy(world: tuple[Workspace, Path], tmp_path: Path) -> None:
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


@pytest.mark.parametrize("what", ["nothing", "other bytes", "another model's"])
def test_nothing_else_is_taken_over(world: tuple[Workspace, Path], what: str, tmp_path: Path) -> None:
    workspace, checkpoint = world
    folder = tmp_path / "folder"
    error: type[Exception] = UsageError
    if what != "nothing":
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
        with pytest.raises(error):
            move_model(ledger, tiny(ledger), folder)
        assert tiny(ledger).path == checkpoint.resolve()
        assert verify_ledger(ledger).problems == []
    assert not before or {n: d for n, d in file_digests(folder).items() if n in before} == before
