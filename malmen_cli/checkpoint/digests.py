"""Digests: `sha256:` and 64 hex digits, of bytes, of a byte range of a file, of a value as canonical JSON."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from malmen_cli.errors import UnsafeFile

ALGORITHM = "sha256"
CHUNK = 1 << 20  # bytes read at a time
THREADED = 1 << 24  # bytes from which several threads are worth their start

T = TypeVar("T")

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def tag(hex_digits: str) -> str:
    """The digest with the name of its algorithm before it."""
    return f"{ALGORITHM}:{hex_digits}"


def is_digest(text: object) -> bool:
    """True for exactly `sha256:` and 64 lower-case hex digits: safe to make a file name of."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def digest_bytes(data: bytes) -> str:
    return tag(hashlib.sha256(data).hexdigest())


def digest_file(path: Path, start: int = 0, length: int | None = None) -> str:
    """Digest of `length` bytes from `start` (both in bytes; to the end of the file without `length`), streamed.

    Raises UnsafeFile where the file ends before the range does, or is a pipe or a device, which may never end; OSError
    where it cannot be read.
    """
    hasher = hashlib.sha256()
    if not stat.S_ISREG(path.stat().st_mode):
        raise UnsafeFile(f"{path} is not a regular file", remedy="put a plain file in its place")
    with path.open("rb") as file:
        file.seek(start)
        left = length
        while left is None or left > 0:
            chunk = file.read(CHUNK if left is None else min(CHUNK, left))
            if not chunk:
                break
            hasher.update(chunk)
            left = None if left is None else left - len(chunk)
    if left:
        raise UnsafeFile(f"{path} ends {left} bytes too early", remedy="restore the file, it was cut short")
    return tag(hasher.hexdigest())


def digest_ranges(path: Path, ranges: Sequence[tuple[int, int]]) -> list[str]:
    """`digest_file` of several (start, length) of one file, in their order."""
    return digest_many(lambda part: digest_file(path, *part), ranges, [length for _, length in ranges])


def digest_many(digest: Callable[[T], str], items: Sequence[T], sizes: Sequence[int]) -> list[str]:
    """`digest` of each item, in their order: some at a time, since hashing keeps nobody else waiting.

    Args:
        sizes: of the items, in bytes. The largest are begun first, so that no thread ends alone with one of them.

    Raises:
        what `digest` does, of the first item that it raises for.
    """
    if len(items) < 2 or sum(sizes) < THREADED:
        return [digest(item) for item in items]
    from concurrent.futures import ThreadPoolExecutor  # takes its time to load

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        order = sorted(range(len(items)), key=lambda place: -sizes[place])
        begun = {place: threads.submit(digest, items[place]) for place in order}
    return [begun[place].result() for place in range(len(items))]


def short(digest: str) -> str:
    """The first ten hex digits, for people."""
    return digest.removeprefix(f"{ALGORITHM}:")[:10]


def canonical_json(value: object) -> str:
    """One spelling per value: sorted keys, no spaces, text as it is; ValueError for NaN and infinities."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_json(value: object) -> str:
    return digest_bytes(canonical_json(value).encode())
