"""Objects in the making: bytes too many for memory, written piece by piece, named once all are there."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from malmen_cli.checkpoint.digests import CHUNK, digest_many, tag
from malmen_cli.checkpoint.durable import NO_LINK, TEMPORARY, in_words, make_folders, read_all, write_all
from malmen_cli.errors import MalmenError, VerificationFailed


class StagedObject:
    """A file that becomes an object once it is complete, or never: `ObjectStore.put_many` puts it in place.

    It is removed with its last reference or at the end of the process, unless it was put in place. A killed process
    leaves a temporary file, which gc knows by its name.

    Args:
        folder: the objects' folder; None for what is never to be put in place: a file without a name in the system's
            folder for temporary files, which nothing leaves behind.

    Raises:
        MalmenError: the disk does not take it.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._digest: str | None = None
        self.is_named = folder is not None
        self._removal: weakref.finalize[..., StagedObject]
        if folder is None:
            self.path = temporary_folder()
            with in_words(self.path):
                file = tempfile.TemporaryFile(dir=self.path, buffering=0)  # noqa: SIM115  stays open
            self.descriptor = file.fileno()
            self._removal = weakref.finalize(self, file.close)
            return
        self.path = folder / f"{TEMPORARY}{secrets.token_hex(8)}"
        make_folders(folder)
        with in_words(self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self.descriptor = os.open(self.path, flags, 0o600)
        self._removal = weakref.finalize(self, _remove, self.descriptor, self.path, os.getpid())

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` at `offset` (bytes), before the digest is asked for."""
        with in_words(self.path):
            write_all(self.descriptor, data, offset)

    def read(self, into: memoryview, offset: int) -> None:
        """Fill `into` with what was written from `offset` on. Raises MalmenError where the disk does not give it."""
        with self._read_in_words():
            if not read_all(self.descriptor, into, offset):
                raise OSError(errno.EIO, "the file is shorter than what was written")

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    @property
    def digest(self) -> str:
        """The digest of what was written, all of it: computed once, when it is first asked for."""
        if self._digest is None:
            with self._read_in_words():
                self._digest = digest_descriptor(self.descriptor)
        return self._digest

    @contextmanager
    def _read_in_words(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            remedy = "check the disk, then run the command again"
            raise MalmenError(f"cannot read {self.path}: {error.strerror or error}", remedy=remedy) from error

    def place(self, path: Path) -> None:
        """Make it the file at `path`, read-only and synced; the folders' sync is the caller's.

        Only a rename within one folder happens as a whole or not at all whenever the power fails, so it is given a
        second name there first, where the file system has such.
        """
        if not self.is_named:
            raise VerificationFailed("rows that were not to be kept were to be stored", remedy="report this")
        with in_words(path):
            os.fchmod(self.descriptor, 0o444)
            os.fsync(self.descriptor)
            beside = path.parent / self.path.name
            try:
                os.link(self.path, beside, follow_symlinks=False)
            except OSError as error:
                if error.errno not in NO_LINK:
                    raise
                self.path.rename(path)
            else:
                try:
                    beside.rename(path)
                except OSError:
                    beside.unlink(missing_ok=True)
                    raise
                self.path.unlink()
        self._removal.detach()
        self._removal = weakref.finalize(self, _remove, self.descriptor, None, os.getpid())
        self.path, self.is_named = path, False

    def discard(self) -> None:
        """Remove it now, whether or not it is complete."""
        self._removal()


def digest_all(staged: Sequence[StagedObject]) -> list[str]:
    """The digest of each, several computed at a time. Raises MalmenError as `digest` does."""
    return digest_many(lambda data: data.digest, staged, [data.size for data in staged])


def temporary_folder() -> Path:
    """The system's folder for temporary files, or TMPDIR. Raises MalmenError where there is none to write in."""
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        raise MalmenError(
            f"there is no folder for temporary files: {error.strerror or error}",
            remedy="set TMPDIR to a folder with room that you may write in, then run the command again",
        ) from error


def digest_descriptor(descriptor: int) -> str:
    """Digest of all bytes of an open file, streamed; the descriptor's own position plays no part."""
    hasher, buffer, offset = hashlib.sha256(), bytearray(CHUNK), 0
    while read := os.preadv(descriptor, [buffer], offset):
        hasher.update(memoryview(buffer)[:read])
        offset += read
    return tag(hasher.hexdigest())


def _remove(descriptor: int, path: Path | None, process: int) -> None:
    os.close(descriptor)
    if path is not None and os.getpid() == process:  # a fork has no say
        with suppress(OSError):
            path.unlink(missing_ok=True)
