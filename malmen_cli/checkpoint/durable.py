"""Writing files so that they are there whole or not at all, also after a power failure.

Always the same four steps: a temporary file in the same folder, fsync, rename, fsync of the folder. A process killed in
between leaves at most a temporary file, which `remove_leftovers` knows by its name.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from malmen_cli.errors import MalmenError

TEMPORARY = ".malmen-tmp-"
NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}
"""What file systems say that give a file no further name."""

FREE_SPACE = "free some space"

_BLOCK = 4096  # bytes that a file system allocates at a time


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Turn an OSError (disk full, no permission, I/O error) into a MalmenError that names `path`."""
    try:
        yield
    except OSError as error:
        raise MalmenError(
            f"cannot write {path}: {error.strerror or error}",
            remedy="check the disk's free space and health and the folder's permissions, then run the command again",
        ) from error


@contextmanager
def temporary_beside(path: Path, mode: int = 0o666) -> Iterator[tuple[Path, int]]:
    """A new empty file in the folder of `path`, with an open descriptor to it; removed when an error escapes.

    A mode of 0o666 is narrowed by the umask, as for any new file. An OSError inside becomes a MalmenError in words.
    """
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    with in_words(path):
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            yield temporary, descriptor
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


def write_durably(path: Path, data: bytes, mode: int | None = None) -> None:
    """Put `data` at `path`, replacing what was there. Raises MalmenError in words when the disk does not take it."""
    write_without_folder(path, data, mode)
    fsync_folder(path.parent)


def write_without_folder(path: Path, data: bytes, mode: int | None = None) -> None:
    """`write_durably` short of its last step, for callers that write many files and then sync their folder once."""
    with temporary_beside(path) as (temporary, descriptor):
        write_all(descriptor, data, 0)
        if mode is not None:
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)
        temporary.rename(path)


def write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset` (bytes), however little the system takes at a time."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def read_all(descriptor: int, into: memoryview, offset: int) -> bool:
    """Fill `into` from `offset` (bytes) on, however little the system gives at a time; False where the file ends."""
    while into:
        read = os.preadv(descriptor, [into], offset)
        if not read:
            return False
        into, offset = into[read:], offset + read
    return True


def begin_writing(descriptor: int, offset: int, length: int) -> None:
    """Have the disk begin with what was just written (both in bytes) while more is: the fsync to come waits for less.

    Only a hint, where the system takes one: an error of the disk is reported by the fsync, and nothing is safe before.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)  # keeps what is not written yet


def fsync_path(path: Path) -> None:
    with in_words(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: renames and removals are lost by a power failure without it."""
    fsync_path(folder)


def make_folders(folder: Path) -> None:
    """Make a folder and whatever is missing above it; their names survive a power failure."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with in_words(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            # It was there, and another process has removed it since; by now one more may have made it again.
            try:
                found = folder.lstat()
            except FileNotFoundError:
                return make_folders(folder)
            if not stat.S_ISDIR(found.st_mode):
                raise
    for path in missing:
        fsync_folder(path.parent)


def require_writable(folder: Path) -> None:
    """Raise MalmenError where no file may be put into `folder`, or into the nearest one above it that is there.

    For work that takes long and writes at its end.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise MalmenError(f"cannot write in {folder}: {there} is no folder", remedy="name another one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise MalmenError(f"cannot write in {there}", remedy="give yourself write permission on it")


def remove_durably(path: Path) -> None:
    with in_words(path):
        path.unlink(missing_ok=True)
    fsync_folder(path.parent)


def remove_leftovers(folder: Path) -> list[str]:
    """Remove temporary files of killed processes and return their names. The caller holds the folder's lock."""
    names = []
    with in_words(folder):
        for path in sorted(folder.glob(f"{TEMPORARY}*")):
            if stat.S_ISREG(path.lstat().st_mode):
                path.unlink()
                names.append(path.name)
    return names


class Need(NamedTuple):
    """Files that are to be written below a folder (which need not be there yet): their sizes in bytes, and what for."""

    folder: Path
    sizes: tuple[int, ...]
    purpose: str


def require_space(needs: Iterable[Need], how: str = FREE_SPACE) -> None:
    """Raise MalmenError where a disk has less free than is to be written to it, saying for what and how much.

    Needs on one disk are summed, wherever their folders are, and every file is taken in whole blocks. What others
    write meanwhile is not foreseen: every write is still one that may find the disk full.

    Args:
        how: what can be done about it, as the remedy begins.
    """
    by_disk: dict[int, list[tuple[Path, int, str]]] = {}
    for folder, sizes, purpose in needs:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if size := sum(-(-size // _BLOCK) * _BLOCK for size in sizes):
            by_disk.setdefault(there.stat().st_dev, []).append((there, size, purpose))
    short = []
    for wanted in by_disk.values():
        needed, free = sum(size for _, size, _ in wanted), shutil.disk_usage(wanted[0][0]).free
        if free < needed:
            parts = [f"{_amount(size)} for {purpose} in {folder}" for folder, size, purpose in wanted]
            listed = parts[0] if len(parts) == 1 else f"{_amount(needed)}: {', '.join(parts)}"
            short.append(f"too little space on the disk: this needs {listed}, and {_amount(free)} are free")
    if short:
        raise MalmenError("; ".join(short), remedy=f"{how}, then run the command again; nothing was changed")


def _amount(size: int) -> str:
    """Bytes as people read them, to three digits or more."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.2f} {unit}"
    return f"{size} bytes"
