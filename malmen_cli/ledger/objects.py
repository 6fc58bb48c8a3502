"""Objects: write-once blobs named by the digest of their content (tensors, rows)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from malmen_cli.checkpoint.digests import ALGORITHM, digest_bytes, digest_file, is_digest, tag
from malmen_cli.checkpoint.durable import fsync_folder, in_words, write_without_folder
from malmen_cli.checkpoint.safetensors_file import open_regular
from malmen_cli.errors import UnsafeFile, VerificationFailed
from malmen_cli.ledger.staged import StagedObject, digest_descriptor

Checked = dict[str, tuple[int, int, int]]
"""Digests of objects whose files were hashed and found sound, with what tells when one is another file since."""

LOST = (
    "run malmen verify; what the checkpoint holds as it stands, malmen recover --restore keeps again; else restore the "
    "workspace from a backup"
)
"""The remedy for an object that is lost or damaged."""


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """`root/sha256/ab/abcd..`, read-only files. What `put` has returned survives a power failure."""

    root: Path

    def path(self, digest: str) -> Path:
        """Where the object lies or would lie. Raises VerificationFailed for what is not a digest."""
        if not is_digest(digest):
            raise VerificationFailed(f"{digest!r} is not the name of an object", remedy=LOST)
        name = digest.removeprefix(f"{ALGORITHM}:")
        return self.root / ALGORITHM / name[:2] / name

    def contains(self, digest: str) -> bool:
        """Whether the object is there; `get` says whether it is sound."""
        return self.path(digest).is_file()

    def is_sound(self, digest: str) -> bool:
        """Whether the object is there, can be read, and is what its name says."""
        path = self.path(digest)
        with suppress(OSError):
            return not path.is_symlink() and path.is_file() and digest_file(path) == digest
        return False

    def size(self, digest: str) -> int | None:
        """Bytes of the object; None where there is none."""
        try:
            return self.path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def put(self, data: bytes) -> str:
        return self.put_many([data])[0]

    def put_many(self, blobs: Iterable[bytes | StagedObject]) -> list[str]:
        """Store blobs and return their digests in order; folders are synced once at the end.

        A sound object is never written again; a damaged one is, since here is what it should be.
        """
        digests: list[str] = []
        folders: dict[Path, None] = {}
        for data in blobs:
            digest = data.digest if isinstance(data, StagedObject) else digest_bytes(data)
            path = self.path(digest)
            with in_words(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                if not self.is_sound(digest):
                    if isinstance(data, StagedObject):
                        data.place(path)
                    else:
                        write_without_folder(path, data, mode=0o444)
            folders |= dict.fromkeys((path.parent, path.parent.parent, self.root, self.root.parent))
            digests.append(digest)
        for folder in folders:
            fsync_folder(folder)
        return digests

    def get(self, digest: str) -> bytes:
        """The blob, checked against its name. Raises VerificationFailed naming the file that is missing or damaged."""
        path = self.path(digest)
        with _checking(path), open_regular(path) as file:
            data = file.read()
        if digest_bytes(data) != digest:
            raise _damaged(path)
        return data

    @contextmanager
    def opened(self, digest: str, checked: Checked | None = None) -> Iterator[BinaryIO]:
        """The object's file, for those that need only parts of it, checked against its name as `get` does.

        Args:
            checked: what was checked before: such a file is hashed again only where it looks another one since.

        Raises:
            VerificationFailed: also for an OSError within.
        """
        path = self.path(digest)
        with _checking(path), open_regular(path) as file:
            status = os.fstat(file.fileno())
            now = status.st_ino, status.st_size, status.st_mtime_ns
            if checked is None or checked.get(digest) != now:
                if digest_descriptor(file.fileno()) != digest:
                    raise _damaged(path)
                if checked is not None:
                    checked[digest] = now
            yield file

    def __iter__(self) -> Iterator[str]:
        """Digests of the objects that are there, by their names; anything else in the folder is passed over."""
        for path in sorted((self.root / ALGORITHM).glob("??/*")):
            if is_digest(tag(path.name)) and path.name.startswith(path.parent.name):
                yield tag(path.name)


@contextmanager
def _checking(path: Path) -> Iterator[None]:
    """What keeps an object from being read, as VerificationFailed in words."""
    try:
        yield
    except (OSError, UnsafeFile) as error:
        # What opening refuses names the file itself.
        said = f"{path} cannot be read: {error.strerror}" if isinstance(error, OSError) else error.message
        raise VerificationFailed(f"object {said}", remedy=LOST) from error


def _damaged(path: Path) -> VerificationFailed:
    return VerificationFailed(f"object {path} is damaged", remedy=LOST)
