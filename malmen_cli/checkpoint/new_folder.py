"""A folder that is there whole or not at all: filled under another name beside it, synced, renamed.

A killed process leaves only the hidden part folder; the next one that makes the same folder empties it first.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from malmen_cli.checkpoint.durable import TEMPORARY, fsync_folder, fsync_path, in_words, make_folders
from malmen_cli.errors import Locked, UsageError


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill with files; when the body ends well it is `target`, and otherwise it is gone.

    Raises UsageError where `target` is there already and is not an empty folder, Locked where another process is
    making it, MalmenError in words where the disk does not take it.
    """
    refuse_existing(target)
    target = target.absolute()
    part = target.parent / f"{TEMPORARY}{target.name}"
    make_folders(target.parent)
    with in_words(target):
        descriptor = _held(part, target)
        try:
            _empty(part)
            yield part
            for path in part.rglob("*"):
                fsync_path(path)
            fsync_folder(part)
            refuse_existing(target)
            part.rename(target)
            fsync_folder(target.parent)
        except BaseException:
            with suppress(OSError):
                shutil.rmtree(part)
            raise
        finally:
            os.close(descriptor)


def refuse_existing(target: Path) -> None:
    """Raise UsageError where there is anything at `target` but an empty folder, or above it what is none."""
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise UsageError(
            f"{target} is there already and is not an empty folder", remedy="name another folder, or remove that one"
        )
    above = next(parent for parent in target.absolute().parents if parent.exists())
    if not above.is_dir():
        raise UsageError(f"{above} is not a folder", remedy="name another folder")


def _held(part: Path, target: Path) -> int:
    """An open descriptor of the part folder, locked. The kernel lets go of it with the process, however that dies."""
    with suppress(FileExistsError):
        part.mkdir()
    descriptor = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The one before us may have renamed or removed it between our two steps.
        if os.path.samestat(part.lstat(), os.fstat(descriptor)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    raise Locked(f"{target} is being written by another process", remedy="wait until it has finished")


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
