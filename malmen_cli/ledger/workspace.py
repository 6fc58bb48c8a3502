"""The workspace: the folder `.malmen` that holds a ledger, its objects and its editors; making and finding it."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from malmen_cli.errors import NoWorkspace, UnusableLedger

FOLDER = ".malmen"
VARIABLE = "MALMEN_WORKSPACE"


@dataclass(frozen=True, slots=True)
class Workspace:
    """Paths of one workspace; `root` is the `.malmen` folder itself."""

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "ledger.db"

    @property
    def objects(self) -> Path:
        return self.root / "objects"

    @property
    def editors(self) -> Path:
        return self.root / "editors"

    @property
    def training(self) -> Path:
        return self.root / "training"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"


def find_workspace(
    explicit: Path | None = None, cwd: Path | None = None, environ: Mapping[str, str] | None = None
) -> Workspace:
    """The workspace a command works in.

    `explicit` (`--workspace`) or MALMEN_WORKSPACE name it or the folder holding it; else the nearest one upwards from
    `cwd`; else the one in the user's data folder. Raises NoWorkspace, or UnusableLedger for somebody else's.
    """
    environ = os.environ if environ is None else environ
    if explicit is None and environ.get(VARIABLE):
        explicit = Path(environ[VARIABLE])
    if explicit is not None:
        workspace = _named(explicit.expanduser())
    else:
        workspace = upwards((cwd or Path.cwd()).resolve()) or _of_user()
    check_owner(workspace)
    return workspace


def _named(path: Path) -> Workspace:
    check_link(path)
    path = path.resolve()
    if (path / FOLDER).is_dir():
        return Workspace(path / FOLDER)
    if path.is_dir() and (path.name == FOLDER or Workspace(path).database.exists()):
        return Workspace(path)
    raise NoWorkspace(f"there is no workspace at {path}", remedy="make one there with malmen init")


def upwards(folder: Path) -> Workspace | None:
    """The nearest workspace in a folder or above it."""
    for place in (folder, *folder.parents):
        if (place / FOLDER).is_dir():
            return Workspace(place / FOLDER)
    return None


def _of_user() -> Workspace:
    """That which `malmen init` makes in the user's data folder."""
    from platformdirs import user_data_dir

    workspace = Workspace(Path(user_data_dir("malmen")) / FOLDER)
    if not workspace.database.exists():
        raise NoWorkspace("there is no workspace here or in a folder above", remedy="make one with malmen init")
    return workspace


def check_owner(workspace: Workspace) -> None:
    """A workspace says what is written into checkpoints: never take a stranger's for one's own.

    Nor one that every user may write in. A group may: many systems give each user a group of their own. The workspace
    may be reached through a link that its owner or root made; links inside it would spread it over strange places.
    """
    check_link(workspace.root)
    parts = (workspace.objects, workspace.editors, workspace.training, workspace.checkpoints)
    others_enter = False
    for path in (workspace.root, workspace.database, *parts):
        try:
            status = path.lstat() if path != workspace.root else path.stat()
        except OSError:
            continue  # what is not there, or cannot be reached, is not written either
        if stat.S_ISLNK(status.st_mode) and path != workspace.database:  # which is judged where it is opened
            raise UnusableLedger(
                f"{path} is a link", remedy="put what it leads to in its place; the whole workspace may be a link"
            )
        if status.st_uid != os.geteuid():
            raise UnusableLedger(
                f"{path} belongs to another user (uid {status.st_uid})",
                remedy="make your own workspace with malmen init, or take that one over with chown -R",
            )
        others_enter |= path == workspace.root and bool(status.st_mode & stat.S_IXOTH)
        writable = status.st_mode & stat.S_IWOTH and not stat.S_ISLNK(status.st_mode)
        if writable and (others_enter or path == workspace.root):
            raise UnusableLedger(f"every user can write in {path}", remedy=f"look what is in it, then chmod o-w {path}")


def check_link(path: Path) -> None:
    """Raises UnusableLedger where `path` is a link that neither this user nor root made."""
    try:
        status = path.lstat()
    except OSError:
        return
    if stat.S_ISLNK(status.st_mode) and status.st_uid not in (0, os.geteuid()):
        raise UnusableLedger(
            f"{path} is a link that another user made (uid {status.st_uid})",
            remedy="name the workspace it leads to with --workspace, if that is the one you mean",
        )
