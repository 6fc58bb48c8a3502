"""R7: two workspaces on one checkpoint. Their locks meet, whatever it is called; one edits, the other is refused."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from figures import Figures
from fork_server import Server
from ledger_world import EDITOR, _new_workspace, apply, fact, make_world, revert, tiny
from safetensors_folders import EDITED, file_digests, names_in, safetensors_bytes
from verdict import judge

from malmen_cli.checkpoint import checkpoint_lock, read_manifest
from malmen_cli.checkpoint.lock import is_locked
from malmen_cli.errors import ExitCode, Locked, WrongBase
from malmen_cli.ledger import Ledger, Workspace, add_editor, register_model, verify_ledger, writing

TITLE = "R7: eight processes at once"


def second_workspace(folder: Path, checkpoint: Path) -> Workspace:
    """A workspace of its own that has registered the same checkpoint, under the same name."""
    folder.mkdir()
    workspace = _new_workspace(folder)
    with Ledger.open(workspace, writing=True) as ledger:
        model = register_model(ledger, "tiny", checkpoint, read_manifest(checkpoint), EDITED, {"layers": 3}).model
        home = workspace.editors / EDITOR
        home.mkdir()
        (home / "editor.safetensors").write_bytes(safetensors_bytes({"ridge": ("F32", (1,), b"\0\0\x80\x3f")}))
        (home / "editor.json").write_text('{"rank": 4}')
        add_editor(ledger, model, EDITOR, config={"rank": 4}, scores={"ES": 0.9})
    return workspace


@pytest.fixture
def two(fast_folder: Path) -> tuple[Path, Path]:
    """Worlds `one` and `two`; the second one's `model` is a link to the first one's."""
    make_world(fast_folder / "one", sharded=True)
    second_workspace(fast_folder / "two", fast_folder / "one" / "model")
    (fast_folder / "two" / "model").symlink_to("../one/model")
    return fast_folder / "one", fast_folder / "two"


def test_one_edits_then_the_other(two: tuple[Path, Path]) -> None:
    one, other = (Ledger.open(Workspace(world / ".malmen"), writing=True) for world in two)
    with one, other:
        base = file_digests(two[0] / "model")
        entry = apply(one, fact("a"))
        edited = file_digests(two[0] / "model")
        with pytest.raises(WrongBase, match="is not as the ledger left it"):
            apply(other, fact("b"))
        assert file_digests(two[0] / "model") == edited
        revert(one, entry)
        assert file_digests(two[0] / "model") == base
        entry = apply(other, fact("b"))
        with pytest.raises(WrongBase):
            apply(one, fact("c"))
        revert(other, entry)
        assert file_digests(two[0] / "model") == base
        assert verify_ledger(one).problems == verify_ledger(other).problems == []


def test_eight_processes_from_both(
    server: Server, two: tuple[Path, Path], fast_folder: Path, figures: Figures, full: bool
) -> None:
    """Whose edits are in the checkpoint changes only by way of the base, so never are there edits of both."""
    base = file_digests(two[0] / "model")
    roles = [(role, str(world)) for world in two for role in ("apply_seldom", "revert_all", "revert_all", "revert_all")]
    began = time.monotonic()
    counted = server.ask("crowd", folder=str(fast_folder), roles=roles, seconds=40.0 if full else 3.0, kills=0.02)
    assert [world for world in two if is_as_its_head(world)], "the checkpoint is neither ledger's"
    reverters = [("revert_all", str(world)) for world in two]
    for number in range(60):  # whoever owns it goes back to the base
        server.ask("crowd", folder=str(fast_folder), roles=reverters, seconds=1.0, seed=number)
        if file_digests(two[0] / "model") == base:
            break
    found = judge(fast_folder, list(two), counted, may_fail=frozenset({ExitCode.WRONG_BASE}))
    figures(
        TITLE,
        crowd="two workspaces, one checkpoint",
        processes=8,
        **found.figures(),
        refused_as_wrong_base=found.ends[ExitCode.WRONG_BASE],
        seconds=time.monotonic() - began,
    )
    assert not found.wrong, found.summary()
    assert file_digests(two[0] / "model") == base
    assert found.ends[ExitCode.WRONG_BASE], "nobody met the other's edits"


def is_as_its_head(world: Path) -> bool:
    """Whether the checkpoint is what this ledger says, once what was under way is settled."""
    with Ledger.open(Workspace(world / ".malmen"), writing=True) as ledger:
        try:
            with writing(ledger, tiny(ledger), "malmen recover"):
                return True
        except WrongBase:
            return False


@pytest.mark.parametrize("name", ["link", "link/../link", "."])
def test_the_lock_meets_by_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "link").symlink_to("model")
    monkeypatch.chdir(folder if name == "." else tmp_path)
    other = Path(name)
    for first, second in ((folder, other), (other, folder)):
        with checkpoint_lock(first, "malmen apply"):
            assert is_locked(second)
            with pytest.raises(Locked, match=f"process {os.getpid()} on"), checkpoint_lock(second, "malmen revert"):
                pass
        assert names_in(folder) == []


def test_a_copy_of_a_workspace_does_not_edit_the_originals_model(fast_folder: Path) -> None:
    original, _ = make_world(fast_folder / "one")
    with Ledger.open(original, writing=True) as ledger:
        entry = apply(ledger, fact("a"))
    shutil.copytree(fast_folder / "one", fast_folder / "copy", symlinks=True)
    copied = Workspace(fast_folder / "copy" / ".malmen")
    before = file_digests(fast_folder)
    with (
        Ledger.open(copied, writing=True) as ledger,
        pytest.raises(WrongBase, match=f"edited by the workspace {original.root}, of which .* is a copy"),
    ):
        revert(ledger, entry)
    after = file_digests(fast_folder)
    moved = {name for name in before | after if before.get(name) != after.get(name)}
    assert all(name.endswith(("-wal", "-shm", "ledger.db")) for name in moved), moved
    # A workspace that was moved is the same one.
    original.root.rename(fast_folder / "elsewhere")
    with Ledger.open(Workspace(fast_folder / "elsewhere"), writing=True) as ledger:
        revert(ledger, entry)
