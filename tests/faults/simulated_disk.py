"""A disk that knows what has been synced: what may be left of a folder when the power fails at a given moment.

Four rules, the weakest that a POSIX file system gives:

- A file's content is durable once the file was synced; until then each write may have reached the disk, or not, or in
  part, and a file that grew may hold anything where it did.
- A name (made, renamed, removed) is durable once its folder was synced; until then each change of a folder may have
  reached the disk or not. A rename within a folder happens as a whole or not at all.
- Neither says anything about the other: a name may be there before its file's content, and the reverse.
- What was there before the recording began is durable.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

SECTOR, PAGE = 512, 4096  # bytes that a disk, and that a file system, writes as a whole
ROOT = 0
FORGOTTEN = "-shm"  # SQLite's index of its log: written through a memory map, never synced, worth nothing after a crash


@dataclass(frozen=True, slots=True)
class Operation:
    """One change of the files, one sync, or a mark.

    Attributes:
        node: number of the file or folder. names: (name, node or None for none) that a folder's change sets at once.
        text: what it was, in words; of a mark, the mark.
    """

    kind: Literal["names", "write", "truncate", "chmod", "sync", "mark"]
    node: int = ROOT
    names: tuple[tuple[str, int | None], ...] = ()
    data: bytes = field(default=b"", repr=False)
    offset: int = 0
    size: int = 0
    mode: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A file (`data`), a folder (`names`) or a symbolic link (`data` is its target), as it is at one moment."""

    kind: Literal["file", "folder", "link"]
    mode: int
    data: bytes = b""
    names: Mapping[str, int] = field(default_factory=dict)


Nodes = dict[int, Node]
Choice = Callable[[int, Node, list[Operation]], Node]  # a node as it is on the disk, given what was not synced of it


def scan(folder: Path) -> Nodes:
    """The files below a folder as numbered nodes; names of one file share its number."""
    nodes: Nodes = {}
    known: dict[tuple[int, int], int] = {}

    def add(path: Path) -> int:
        status = path.lstat()
        mode, key = stat.S_IMODE(status.st_mode), (status.st_dev, status.st_ino)
        if key in known:
            return known[key]
        number = known[key] = len(known)
        if path.is_symlink():
            nodes[number] = Node("link", mode, os.fsencode(path.readlink()))
        elif path.is_dir():
            names = {inner.name: add(inner) for inner in sorted(path.iterdir()) if not inner.name.endswith(FORGOTTEN)}
            nodes[number] = Node("folder", mode, names=names)
        else:
            nodes[number] = Node("file", mode, path.read_bytes())
        return number

    add(folder)
    return nodes


def changed(node: Node, operation: Operation) -> Node:
    """A node after one operation on it."""
    if operation.kind == "names":
        names = dict(node.names)
        for name, number in operation.names:
            if number is None:
                names.pop(name, None)
            else:
                names[name] = number
        return replace(node, names=names)
    if operation.kind == "write":
        return replace(node, data=_written(node.data, operation.offset, operation.data))
    if operation.kind == "truncate":
        return replace(node, data=node.data[: operation.size].ljust(operation.size, b"\0"))
    if operation.kind == "chmod":
        return replace(node, mode=operation.mode)
    return node


def disk_at(before: Nodes, operations: Sequence[Operation], moment: int, choose: Choice) -> Nodes:
    """What lies on the disk when the power fails before operation number `moment`, as `choose` decides of each node."""
    durable, waiting = dict(before), {}
    for operation in operations[:moment]:
        if operation.kind == "sync":
            for one in waiting.pop(operation.node, ()):
                durable[operation.node] = changed(durable[operation.node], one)
        elif operation.kind != "mark":
            waiting.setdefault(operation.node, []).append(operation)
    return durable | {number: choose(number, durable[number], some) for number, some in waiting.items()}


def waiting_at(operations: Sequence[Operation], moment: int) -> int:
    """How many changes are not synced at that moment."""
    count: dict[int, int] = {}
    for operation in operations[:moment]:
        if operation.kind == "sync":
            count.pop(operation.node, None)
        elif operation.kind != "mark":
            count[operation.node] = count.get(operation.node, 0) + 1
    return sum(count.values())


def lay_out(nodes: Nodes, folder: Path) -> None:
    """Make `folder`, which must not be there, hold what a disk holds."""
    first: dict[int, Path] = {}

    def put(number: int, path: Path) -> None:
        node = nodes[number]
        if number in first:
            os.link(first[number], path, follow_symlinks=False)
            return
        first[number] = path
        if node.kind == "link":
            path.symlink_to(os.fsdecode(node.data))
        elif node.kind == "file":
            path.write_bytes(node.data)
            path.chmod(node.mode)
        else:
            path.mkdir()
            for name, inner in node.names.items():
                if nodes[inner].kind != "folder" or inner not in first:  # a folder has one name only
                    put(inner, path / name)
            path.chmod(node.mode)

    put(ROOT, folder)


def leave_stale_index(folder: Path) -> None:
    """Put noise where the index of SQLite's log was: nobody may believe what a crash left of it."""
    for log in folder.rglob("*-wal"):
        log.with_name(log.name.removesuffix("-wal") + FORGOTTEN).write_bytes(random.Random(0).randbytes(8 * PAGE))


def fingerprint(nodes: Nodes) -> bytes:
    """Two disks of one fingerprint hold the same files of the same content."""
    whole = hashlib.sha256()

    def add(number: int, name: str) -> None:
        node = nodes[number]
        whole.update(f"{name!r} {node.kind} {len(node.data)} {len(node.names)}".encode() + node.data)
        for inner in sorted(node.names):
            add(node.names[inner], inner)

    add(ROOT, "")
    return whole.digest()


def clear(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


# What may have become of what was not synced -------------------------------------------------------------------------


def nothing(number: int, node: Node, waiting: list[Operation]) -> Node:
    return node


def everything(number: int, node: Node, waiting: list[Operation]) -> Node:
    for operation in waiting:
        node = changed(node, operation)
    return node


def names_only(number: int, node: Node, waiting: list[Operation]) -> Node:
    """Every name, no content: the classical file of no length under its new name."""
    return everything(number, node, waiting) if node.kind == "folder" else node


def content_only(number: int, node: Node, waiting: list[Operation]) -> Node:
    """Every content, no name."""
    return node if node.kind == "folder" else everything(number, node, waiting)


def names_and_sizes(number: int, node: Node, waiting: list[Operation]) -> Node:
    """Every name and every file's length, but zeros where a file grew: its blocks were not written yet."""
    whole = everything(number, node, waiting)
    if node.kind == "folder":
        return whole
    return replace(whole, data=node.data[: len(whole.data)].ljust(len(whole.data), b"\0"))


PLAIN: dict[str, Choice] = {
    choice.__name__: choice for choice in (nothing, everything, names_only, content_only, names_and_sizes)
}


def by_chance(chance: random.Random) -> Choice:
    """Of each file and folder another part: all, none, some of the changes, torn writes, zeros or noise."""
    likely = chance.choice((0.2, 0.5, 0.8))

    def choose(number: int, node: Node, waiting: list[Operation]) -> Node:
        if node.kind == "folder":
            kept = chance.choice((_some, _first))(chance, waiting, likely)
            return everything(number, node, kept)
        way = chance.choice((_kept, _some_writes, _torn, _grown))
        return way(chance, number, node, waiting, likely)

    return choose


def _some(chance: random.Random, waiting: list[Operation], likely: float) -> list[Operation]:
    return [operation for operation in waiting if chance.random() < likely]


def _first(chance: random.Random, waiting: list[Operation], likely: float) -> list[Operation]:
    return waiting[: chance.randint(0, len(waiting))]


def _kept(chance: random.Random, number: int, node: Node, waiting: list[Operation], likely: float) -> Node:
    return everything(number, node, waiting) if chance.random() < likely else node


def _some_writes(chance: random.Random, number: int, node: Node, waiting: list[Operation], likely: float) -> Node:
    return everything(number, node, _some(chance, waiting, likely))


def _torn(chance: random.Random, number: int, node: Node, waiting: list[Operation], likely: float) -> Node:
    """Some sectors or pages of each write: the first few, or any."""
    for operation in waiting:
        if operation.kind != "write":
            node = changed(node, operation)
            continue
        step = chance.choice((SECTOR, PAGE))
        pieces = list(_pieces(operation, step))
        kept = pieces[: chance.randint(0, len(pieces))] if chance.random() < 0.5 else _some(chance, pieces, likely)
        node = everything(number, node, kept)
    return node


def _pieces(operation: Operation, step: int) -> list[Operation]:
    """A write cut where sectors or pages of the file begin."""
    start, end = operation.offset, operation.offset + len(operation.data)
    cuts = [start, *range(start - start % step + step, end, step), end]
    return [replace(operation, offset=a, data=operation.data[a - start : b - start]) for a, b in pairwise(cuts)]


def _grown(chance: random.Random, number: int, node: Node, waiting: list[Operation], likely: float) -> Node:
    """The file has its new length, but zeros or noise where it grew."""
    size = len(everything(number, node, waiting).data)
    grown = max(0, size - len(node.data))
    filler = bytes(grown) if chance.random() < 0.5 else chance.randbytes(grown)
    return replace(node, data=node.data[:size] + filler)


def _written(data: bytes, offset: int, new: bytes) -> bytes:
    return data[:offset].ljust(offset, b"\0") + new + data[offset + len(new) :]
