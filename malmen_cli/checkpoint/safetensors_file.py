"""The header of a safetensors file, read strictly: where every tensor's bytes lie, and nothing left unexplained.

A file is an 8-byte little-endian length, that many bytes of JSON, then the tensors' bytes. The ledger patches byte
ranges, so a header that leaves holes, overlaps, or points past the end of the file is refused, and so is a link: a
link into a hub cache must never be written through.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from malmen_cli.checkpoint.digests import digest_bytes
from malmen_cli.errors import UnsafeFile

# Bytes. The format's own limit is 100 MB, which as JSON could take 2.6 GB; this is room for 300,000 tensors in a file.
LARGEST_HEADER = 32 << 20
LARGEST_SHAPE = (1 << 64) - 1  # of all sizes of a shape together: the library counts in 64 bits

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32,
    "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """Where one tensor lies: `start` and `stop` are byte offsets from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """Every tensor's slot in file order, the digest of the length and JSON bytes, and sizes in bytes."""

    slots: dict[str, TensorSlot]
    digest: str
    header_size: int
    file_size: int


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open for reading, only a regular file and never through a link. Raises UnsafeFile otherwise."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            remedy = "malmen edits files in place: copy the folder with its links resolved (cp -rL) and use the copy"
            raise UnsafeFile(f"{path} is a link", remedy=remedy) from error
        remedy = "check the file and its permissions"
        raise UnsafeFile(f"{path} cannot be read: {error.strerror}", remedy=remedy) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UnsafeFile(f"{path} is not a regular file", remedy="use a folder of plain safetensors files")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check the header of a safetensors file. Raises UnsafeFile for anything the format does not allow."""
    with open_regular(path) as file:
        return header_of(file.fileno(), path)


def header_of(descriptor: int, path: Path) -> SafetensorsHeader:
    """`read_header` of an open file; `path` is for messages."""
    size = os.fstat(descriptor).st_size
    prefix = os.pread(descriptor, 8, 0)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > size - 8:
        raise _malformed(path, "it is shorter than its header says")
    if length > LARGEST_HEADER:
        raise _malformed(path, f"its header of {length} bytes is over the limit of {LARGEST_HEADER}")
    text = os.pread(descriptor, length, 8)
    if len(text) < length:
        raise _malformed(path, "it is shorter than its header says")
    slots = _slots(path, text, 8 + length, size)
    return SafetensorsHeader(slots, digest_bytes(prefix + text), 8 + length, size)


def header_for(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, dict[str, int]]:
    """The header of a file of these tensors (dtype and shape by name), and where each one's bytes begin, from the
    file's own beginning.

    The bytes are those that the safetensors library writes: widest elements first, then by name.
    """
    entries: dict[str, dict[str, object]] = {}
    offsets, reached = {}, 0
    for name in sorted(tensors, key=lambda name: (-BITS[tensors[name][0]], name)):
        dtype, shape = tensors[name]
        stop = reached + math.prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [reached, stop]}
        offsets[name], reached = reached, stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + offset for name, offset in offsets.items()}


def read_tensor(path: Path, slot: TensorSlot) -> bytes:
    """The tensor's bytes as they lie in the file. Raises UnsafeFile where the file ends before the slot does."""
    with open_regular(path) as file:
        file.seek(slot.start)
        data = file.read(slot.length)
    if len(data) != slot.length:
        raise _malformed(path, f"it ends inside tensor {slot.name!r}")
    return data


def _slots(path: Path, text: bytes, begin: int, size: int) -> dict[str, TensorSlot]:
    try:
        header = json.loads(text.decode(), object_pairs_hook=_no_duplicates, parse_int=_natural)
    except (ValueError, RecursionError) as error:
        raise _malformed(path, f"its header is not clean JSON ({error})") from error
    if not text.startswith(b"{") or not isinstance(header, dict):
        raise _malformed(path, "its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(_is_text(text) for item in metadata.items() for text in item):
        raise _malformed(path, "its metadata is not a table of texts")
    slots = sorted((_slot(path, name, entry, begin, size) for name, entry in header.items()), key=_file_order)
    reached = begin
    for slot in slots:
        if slot.start != reached:
            raise _malformed(path, f"tensor {slot.name!r} does not begin where the one before it ends")
        reached = slot.stop
    if reached != size:
        raise _malformed(path, f"its tensors end at byte {reached}, the file at {size}")
    return {slot.name: slot for slot in slots}


def _slot(path: Path, name: str, entry: object, begin: int, size: int) -> TensorSlot:
    if not _is_text(name):
        raise _malformed(path, f"tensor name {name!r} is not plain text")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _malformed(path, f"tensor {name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _malformed(path, f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise _malformed(path, f"tensor {name!r} has a shape or offsets that are not sizes")
    start, stop = begin + offsets[0], begin + offsets[1]
    if not start <= stop <= size:
        raise _malformed(path, f"tensor {name!r} lies outside the file")
    if bits_of(shape, dtype, 8 * size) != 8 * (stop - start):
        raise _malformed(path, f"tensor {name!r} of shape {shape} and dtype {dtype} does not take {stop - start} bytes")
    return TensorSlot(name, dtype, tuple(shape), start, stop)


def bits_of(shape: Sequence[int], dtype: str, limit: int) -> int:
    """Bits a tensor takes; more than `limit` where it could not fit anyway, without multiplying huge sizes out."""
    count = 1
    for size in shape:
        count *= size
        if max(count, size) > LARGEST_SHAPE:
            return limit + 1
    return count * BITS[dtype]


def _file_order(slot: TensorSlot) -> tuple[int, int]:
    return slot.start, slot.stop


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _natural(digits: str) -> int:
    """The library takes no -0 for a size."""
    if digits.startswith("-"):
        raise ValueError("a number is negative")
    return int(digits)


def _is_text(value: object) -> bool:
    try:
        return isinstance(value, str) and b"\0" not in value.encode()
    except UnicodeEncodeError:
        return False


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key appears twice")
    return table


def _malformed(path: Path, why: str) -> UnsafeFile:
    return UnsafeFile(f"{path} is not a sound safetensors file: {why}", remedy="fetch or save the file again")
