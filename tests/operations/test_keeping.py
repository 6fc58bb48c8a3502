"""An editor that is made again: its files are put back, and whatever an entry's id covers stays what it was."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from tiny_models import World, everything, make_facts, make_world, run_malmen

from malmen_cli.errors import MalmenError, UsageError
from malmen_cli.ledger import registration, store, verify_ledger
from malmen_cli.operations import keeping
from malmen_cli.operations.editors import DESCRIPTION, TENSORS
from malmen_cli.operations.keeping import keep_editor


@pytest.fixture
def world(tmp_path: Path) -> World:
    """One editor, and an entry that was made with it."""
    world = make_world(tmp_path / "world")
    world.apply(*make_facts(2))
    return world


def folder_of(world: World) -> Path:
    with world.ledger() as (ledger, model), ledger.read() as db:
        [editor] = store.editors(db, model.id)
        return ledger.workspace.editors / editor.id


def trained_again(folder: Path, seconds: float) -> dict[str, bytes]:
    """The editor's files as another run of the same settings makes them: its description tells of other seconds."""
    described = json.loads((folder / DESCRIPTION).read_bytes())
    described["training"]["seconds"] = seconds
    return {TENSORS: (folder / TENSORS).read_bytes(), DESCRIPTION: json.dumps(described).encode()}


def keep(world: World, files: dict[str, bytes]) -> str:
    with world.ledger() as (ledger, model):
        return keep_editor(ledger, model, files).id


def problems(world: World) -> list[str]:
    with world.ledger() as (ledger, _):
        return [problem.where for problem in verify_ledger(ledger).problems]


def test_one_that_is_whole_is_found(world: World) -> None:
    folder, before = folder_of(world), everything(world)
    assert keep(world, trained_again(folder, 1e6)) == folder.name
    assert everything(world) == before


@pytest.mark.parametrize("lost", [TENSORS, DESCRIPTION])
def test_the_very_same_files_are_put_back(world: World, lost: str) -> None:
    folder, before = folder_of(world), everything(world)
    files = {name: (folder / name).read_bytes() for name in (TENSORS, DESCRIPTION)}
    (folder / lost).write_bytes(b"{}")
    assert problems(world)
    assert keep(world, files) == folder.name
    assert everything(world) == before


def test_lost_tensors_are_put_back_beside_the_description_that_was_recorded(world: World) -> None:
    folder, before = folder_of(world), everything(world)
    files = trained_again(folder, 1e6)
    (folder / TENSORS).unlink()
    assert keep(world, files) == folder.name
    assert everything(world) == before and not problems(world)


def test_with_another_description_it_is_kept_beside_one_that_entries_name(world: World) -> None:
    folder = folder_of(world)
    files = trained_again(folder, 1e6)
    (folder / DESCRIPTION).unlink()
    damage = problems(world)
    other = keep(world, files)
    assert other != folder.name and keep(world, {**files, DESCRIPTION: files[DESCRIPTION] + b" "}) == other
    assert problems(world) == damage == [f"editor {folder.name}"]  # the entry's id still follows from what it says
    status, _, err = run_malmen(world, "rebase", "--editor", other, "-q")
    assert status in (0, 3), err


@pytest.mark.parametrize("when", ["written", "put in place"])
def test_the_description_is_not_lost_before_it_is_written_again(
    world: World, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    folder, before = folder_of(world), everything(world)
    files = trained_again(folder, 1e6)
    (folder / TENSORS).unlink()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(MalmenError):
        if when == "written":
            patched.setattr(keeping, "write_durably", fail)
        else:
            patched.setattr(Path, "rename", fail)
        keep(world, files)
    assert keep(world, files) == folder.name
    assert everything(world) == before and not problems(world)


def test_and_recorded_anew_where_none_does(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world")
    folder = folder_of(world)
    files = trained_again(folder, 1e6)
    (folder / DESCRIPTION).unlink()
    assert keep(world, files) == folder.name
    assert not problems(world) and (folder / DESCRIPTION).read_bytes() == files[DESCRIPTION]


def test_one_that_cannot_be_read_now_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    folder, before = folder_of(world), everything(world)
    files = trained_again(folder, 1e6)
    with monkeypatch.context() as patched, pytest.raises(UsageError, match="Permission denied") as caught:
        patched.setattr(registration, "digest_file", unreadable)
        keep(world, files)
    assert caught.value.remedy == "see to it that its files can be read" and everything(world) == before
