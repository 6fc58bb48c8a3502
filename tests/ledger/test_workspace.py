from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from malmen_cli.errors import NoWorkspace, UnusableLedger, UsageError
from malmen_cli.ledger import Ledger, create_workspace, find_workspace


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home" / "data"))
    return tmp_path / "home"


def test_made_private_and_made_again_without_harm(tmp_path: Path) -> None:
    workspace = create_workspace(tmp_path)
    assert workspace.root == tmp_path / ".malmen"
    assert stat.S_IMODE(workspace.root.stat().st_mode) == 0o700
    with Ledger.open(workspace) as ledger:
        id = ledger.id()
    create_workspace(tmp_path)
    with Ledger.open(workspace) as ledger:
        assert ledger.id() == id


def test_no_folder_to_make_it_in(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        create_workspace(tmp_path / "absent")


def test_where_sqlite_cannot_make_its_file_nothing_is_made(tmp_path: Path) -> None:
    outer = create_workspace(tmp_path)
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    with pytest.raises(UsageError, match=r"caf\\udce9.*is not UTF-8$"):
        create_workspace(folder)
    assert not list(folder.iterdir()) and find_workspace(None, folder, {}) == outer
    outer.root.rename(folder / ".malmen")
    with pytest.raises(UsageError, match=r"is not UTF-8$"):
        Ledger.open(find_workspace(None, folder, {}))


class TestFinding:
    def test_the_nearest_upwards(self, tmp_path: Path) -> None:
        outer = create_workspace(tmp_path)
        (tmp_path / "a" / "b" / "c").mkdir(parents=True)
        assert find_workspace(None, tmp_path / "a" / "b" / "c", {}) == outer
        inner = create_workspace(tmp_path / "a" / "b")
        assert find_workspace(None, tmp_path / "a" / "b" / "c", {}) == inner

    def test_named_as_itself_or_as_the_folder_holding_it(self, tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        workspace = create_workspace(tmp_path / "x")
        create_workspace(tmp_path)
        for name in (tmp_path / "x", tmp_path / "x" / ".malmen"):
            assert find_workspace(name, tmp_path, {}) == workspace
            assert find_workspace(None, tmp_path, {"MALMEN_WORKSPACE": str(name)}) == workspace

    def test_the_option_wins_over_the_variable(self, tmp_path: Path) -> None:
        workspace = create_workspace(tmp_path)
        assert find_workspace(tmp_path, tmp_path, {"MALMEN_WORKSPACE": "/nowhere"}) == workspace

    def test_a_named_one_that_is_not_there_is_never_replaced_by_another(self, tmp_path: Path) -> None:
        create_workspace(tmp_path)
        (tmp_path / "empty").mkdir()
        with pytest.raises(NoWorkspace):
            find_workspace(tmp_path / "empty", tmp_path, {})

    def test_none_anywhere(self, tmp_path: Path) -> None:
        with pytest.raises(NoWorkspace) as caught:
            find_workspace(None, tmp_path, {})
        assert "malmen init" in str(caught.value.remedy)

    def test_the_users_own_comes_last(self, tmp_path: Path, home: Path) -> None:
        from platformdirs import user_data_dir

        folder = Path(user_data_dir("malmen"))
        folder.mkdir(parents=True)
        with pytest.raises(NoWorkspace):
            find_workspace(None, tmp_path, {})
        own = create_workspace(folder)
        assert home in own.root.parents
        assert find_workspace(None, tmp_path, {}) == own

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
    @pytest.mark.parametrize("name", [".malmen", ".malmen/ledger.db"])
    def test_somebody_elses_is_refused(self, tmp_path: Path, name: str) -> None:
        create_workspace(tmp_path)
        os.chown(tmp_path / name, 12345, 12345)
        with pytest.raises(UnusableLedger, match="another user"):
            find_workspace(None, tmp_path, {})
        with pytest.raises(UnusableLedger, match="another user"):
            create_workspace(tmp_path)
