"""One writer per checkpoint: a lock on its folder and on a lock file in it, so that two workspaces meet too.

The kernel holds both (flock), not the file's existence nor its words: they end with their process, however that dies,
and a file left over is taken over at once, whatever it says. The file tells who holds the lock. Somebody may remove or
replace it by hand: the folder's lock still keeps a second writer out. Where only files can be locked across hosts (a
network file system), `require_held` takes the file's name back before anything is written, or stops.

Whoever needs several locks takes the workspace's first, then checkpoints', then a training run's.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from malmen_cli.checkpoint.durable import in_words
from malmen_cli.errors import Locked, MalmenError, UnsafeFile, UsageError, WrongBase

LOCK_NAME = ".malmen.lock"
PATIENCE = 30.0
"""Seconds to wait for what others do in a moment: registering a model, upgrading a ledger."""

_POLL = 0.02  # seconds between attempts
_GRACE = 0.25  # seconds that everybody waits: for a reader who only looks, and for a new holder's name
_TELL_AFTER = 1.0  # seconds of waiting until the user is told
_COMMAND_SHOWN = 200  # characters of the holder's command
_NO_NAME = "another process, which left no name"
_LARGEST = 1 << 16  # bytes that are read of a lock file

Waiting = Callable[[str], None]
_Got = TypeVar("_Got")


@dataclass
class _Held:
    """Descriptors of a lock: the folder's (None where folders cannot be locked) and the lock file's."""

    folder: int | None
    file: int


_held: dict[Path, _Held] = {}  # by folder: the locks of this process
_on_waiting: Waiting | None = None


def announce_waiting(tell: Waiting | None) -> None:
    """Have `tell` called once, in words, by every wait for a lock that takes longer than a second."""
    global _on_waiting
    _on_waiting = tell


@contextmanager
def checkpoint_lock(folder: Path, command: str, timeout: float = 0) -> Iterator[None]:
    """Hold the only writer's lock on `folder`, waiting at most `timeout` seconds (and a moment) for it.

    Raises Locked naming the holder, UsageError where the folder cannot be written. The lock file is gone afterwards.
    """
    path = folder / LOCK_NAME
    held = _wait_for(lambda: _lock(path), [folder], timeout)
    try:
        _held[folder] = held
        _write_words(path, held.file, command)
        yield
    finally:
        _held.pop(folder, None)
        # Removed while still held: whoever waits on this file sees that the name now leads elsewhere and starts over.
        with suppress(OSError):
            if _is_still_named(path, held.file):
                path.unlink()
        _close(held.file, held.folder)


def require_held(folder: Path) -> None:
    """Make sure, before something is written, that the lock this process took on `folder` still keeps others out.

    Raises Locked where the folder was replaced, or where the lock file was and another process holds the new one.
    """
    held, path = _held.get(folder), folder / LOCK_NAME
    if held is None:
        raise RuntimeError(f"{folder} is written without its lock")
    if held.folder is not None and not os.path.samestat(folder.stat(), os.fstat(held.folder)):
        raise Locked(f"{folder} was replaced while this command held it", remedy="run the command again")
    if not _is_still_named(path, held.file):
        try:
            file = _lock_file(path)
        except BlockingIOError:
            message = f"the lock file of {folder} was removed by hand, and now it is held by {_holder(path)}"
            raise Locked(message, remedy="wait until that has finished, then run the command again") from None
        _close(held.file)
        held.file = file


@contextmanager
def writers_kept_out(folders: Iterable[Path], timeout: float = 0) -> Iterator[None]:
    """For readers: no writer works in any of the folders meanwhile. Writes nothing; a folder that is gone has none.

    Raises Locked naming a writer that holds one for longer than `timeout` seconds (and a moment).
    """
    chosen = sorted(set(folders))
    with ExitStack() as locks:
        unlockable: list[Path] = []
        for descriptor in _wait_for(lambda: _lock_shared(chosen, unlockable), chosen, timeout):
            locks.callback(os.close, descriptor)
        yield
        for folder in unlockable:  # all that can be done there
            if is_locked(folder):
                raise Locked(f"{folder} is held by {_holder(folder / LOCK_NAME)}", remedy="run the command again")


def is_locked(folder: Path) -> bool:
    """Whether a process writes in `folder` just now; writes nothing, and no writer is refused because of it."""
    try:
        descriptors = _lock_shared([folder], [])
    except BlockingIOError:
        return True
    _close(*descriptors)
    return False


# Attempts ------------------------------------------------------------------------------------------------------------


def _wait_for(attempt: Callable[[], _Got], folders: Sequence[Path], timeout: float) -> _Got:
    """What `attempt` returns as soon as it does not raise BlockingIOError any more; Locked after `timeout` seconds."""
    began, told = time.monotonic(), False
    while True:
        try:
            return attempt()
        except BlockingIOError:
            waited = time.monotonic() - began
        patience = max(_GRACE, timeout)
        held = held_in_words(folders) if waited >= patience else ""
        # Who has only just got it has not written its name yet: a moment more for that.
        if held and (_NO_NAME not in held or waited >= patience + _GRACE):
            raise Locked(held, remedy="wait until it has finished, then run the command again; or give --lock-timeout")
        if waited >= _TELL_AFTER and not told and _on_waiting is not None:
            told = True
            _on_waiting(f"{held_in_words(folders)}; waiting for it")
        time.sleep(_POLL)


def _lock(path: Path) -> _Held:
    """Both locks, the folder's first, or none. Raises BlockingIOError where another process holds one."""
    folder, file = _flock(path.parent, fcntl.LOCK_EX, os.O_DIRECTORY), None
    try:
        if folder is not None:
            _take_over(path)
        file = _lock_file(path)
        # A training run's folder is removed by whoever ends it, and made again by the next: it may not have been there
        # yet, or the file may lie in another one than was locked, whose own lock somebody else then takes.
        if folder is None:
            folder = _flock(path.parent, fcntl.LOCK_EX, os.O_DIRECTORY)
        if not _is_still_named(path, file) or not (folder is None or _is_still_named(path.parent.resolve(), folder)):
            raise BlockingIOError
        return _Held(folder, file)
    except BaseException:
        _close(file, folder)
        raise


def _take_over(path: Path) -> None:
    """Remove a lock file that a killed command of another user has left, and that this one may not write into.

    Raises BlockingIOError where that command is alive.
    """
    try:
        is_left = path.is_file() and not path.is_symlink() and not os.access(path, os.R_OK | os.W_OK)
    except OSError:  # of a folder that may not be searched: to open the file will tell
        return
    if is_left:
        _close(_flock(path, fcntl.LOCK_SH, os.O_NOFOLLOW))
        with suppress(OSError):
            path.unlink()


def _lock_file(path: Path) -> int:
    while True:
        descriptor = _open(path)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError as error:
                message = f"the file system of {path.parent} cannot lock files: {error.strerror}"
                raise MalmenError(message, remedy="mount it with locks, or work on a copy on another disk") from error
            if _is_still_named(path, descriptor):
                if os.fstat(descriptor).st_nlink == 1:
                    return descriptor
                path.unlink()  # another name of some file that is not ours to write into
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock_shared(folders: Iterable[Path], unlockable: list[Path]) -> list[int]:
    """Descriptors of all folders, locked against writers, or none. Raises BlockingIOError where one writes.

    `unlockable` gets the folders of which only the lock file can say so.
    """
    unlockable.clear()
    descriptors: list[int] = []
    try:
        for folder in folders:
            descriptor = _flock(folder, fcntl.LOCK_SH, os.O_DIRECTORY)
            if descriptor is None:
                unlockable.append(folder)
            else:
                descriptors.append(descriptor)
            _close(_flock(folder / LOCK_NAME, fcntl.LOCK_SH, os.O_NOFOLLOW))
    except BaseException:
        _close(*descriptors)
        raise
    return descriptors


def _flock(path: Path, operation: int, flags: int) -> int | None:
    """A locked descriptor of what is there; None where that cannot be. Raises BlockingIOError where another has it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _open(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnsafeFile(f"{path} is a link", remedy="remove it, and ask where it came from") from error
        if error.errno == errno.ENOENT:
            raise WrongBase(f"the folder {path.parent} is gone", remedy="put it back at that path") from error
        raise UsageError(
            f"cannot write in {path.parent}: {error.strerror} ({path.name})",
            remedy="give yourself write permission on that folder, or work on a copy of it",
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnsafeFile(f"{path} is not a plain file", remedy="remove it, and ask where it came from")
    return descriptor


def _is_still_named(path: Path, descriptor: int) -> bool:
    """False where the file was removed, by its last holder between our open and our lock, or by hand."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _close(*descriptors: int | None) -> None:
    for descriptor in descriptors:
        if descriptor is not None:
            os.close(descriptor)


# Words ---------------------------------------------------------------------------------------------------------------


def _write_words(path: Path, descriptor: int, command: str) -> None:
    started = datetime.now(UTC).isoformat(timespec="seconds")
    shown = command if len(command) <= _COMMAND_SHOWN else f"{command[:_COMMAND_SHOWN]}..."
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "command": shown, "started": started}
    with in_words(path):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def held_in_words(folders: Sequence[Path]) -> str:
    """Which of the folders is held, and by whom."""
    folder = next(filter(is_locked, folders), folders[0])
    return f"{folder} is held by {_holder(folder / LOCK_NAME)}"


def _holder(path: Path) -> str:
    """The holder in words, from a file that anybody may have written: pid, host, age, command."""
    try:
        record = json.loads(_content(path))
        pid, host, command = record["pid"], record["host"], record["command"]
        started = datetime.fromisoformat(record["started"])
        if type(pid) is not int or not isinstance(host, str) or not isinstance(command, str):
            raise TypeError
        text = f"process {pid} on {host[:100]} for {_age(datetime.now(UTC) - started)}: {command[: _COMMAND_SHOWN + 3]}"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return _NO_NAME
    return "".join(mark if mark.isprintable() else ascii(mark)[1:-1] for mark in text)


def _content(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.pread(descriptor, _LARGEST, 0)
    finally:
        os.close(descriptor)


def _age(elapsed: timedelta) -> str:
    """A duration as people say it; 0 s by a clock that is ahead of ours."""
    seconds = max(0, int(elapsed.total_seconds()))
    for unit, size, smaller, part in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} {seconds % size // part} {smaller}"
    return f"{seconds // 60} min" if seconds >= 120 else f"{seconds} s"
