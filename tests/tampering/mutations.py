"""Mutations of a world, each with the words of a report that locate it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors_folders import safetensors_bytes
from tampered_world import TamperedWorld


@dataclass(frozen=True)
class Mutation:
    """One tampering.

    Attributes:
        place: the row of the table of figures. what: said when it is missed. paths: what has to be restored.
        located: any of these in the report says where it was; None: by the rows that are found to be others.
    """

    place: str
    what: str
    act: Callable[[], object]
    paths: tuple[Path, ...]
    located: tuple[str, ...] | None = None


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


class Files:
    """Mutations of files: of one by itself, of one by another, and of what a file is."""

    def __init__(self, world: TamperedWorld, chance: random.Random) -> None:
        self.world, self.chance = world, chance

    def place(self, path: Path) -> str:
        if path == self.world.database:
            return "database pages"
        if path.is_relative_to(self.world.workspace.objects):
            return "objects"
        if path.is_relative_to(self.world.workspace.editors):
            return "editors"
        return "weights" if path.suffix == ".safetensors" else "config, tokenizer"

    def located(self, path: Path) -> tuple[str, ...] | None:
        """The name of an object, an editor's id, a file of the checkpoint with its model's folder."""
        if path == self.world.database:
            return None
        if path.is_relative_to(self.world.workspace.objects):
            return (path.name[:10],)
        if path.is_relative_to(self.world.workspace.editors):
            return (f"editor {path.parent.name}",)
        return (path.name,)

    def write(self, path: Path, data: bytes, what: str, place: str | None = None) -> Mutation:
        def act() -> None:
            path.chmod(0o644)
            path.write_bytes(data)

        said = f"{path.relative_to(self.world.root)}: {what}"
        return Mutation(place or self.place(path), said, act, (path,), self.located(path))

    def flips(self, path: Path, count: int) -> Iterator[Mutation]:
        """Single bits, all of a small file's where there are no more than `count`."""
        data = self.world.sound[path][0]
        bits = 8 * len(data)
        for bit in range(bits) if bits <= count else sorted(self.chance.sample(range(bits), count)):
            yield self.write(path, flipped(data, bit), f"bit {bit} flipped")

    def header_flips(self, path: Path, count: int) -> Iterator[Mutation]:
        data = self.world.sound[path][0]
        bits = 8 * (8 + int.from_bytes(data[:8], "little"))
        for bit in sorted(self.chance.sample(range(bits), min(count, bits))):
            yield self.write(path, flipped(data, bit), f"bit {bit} of its header flipped", "safetensors headers")

    def sizes(self, path: Path, count: int) -> Iterator[Mutation]:
        """Cut short and grown, emptied, zeroed."""
        data = self.world.sound[path][0]
        for length in {0, len(data) - 1, *(self.chance.randrange(len(data)) for _ in range(count))} if data else ():
            yield self.write(path, data[:length], f"cut to {length} bytes")
        for tail in (b"\0", b"\n", data[-64:]):
            yield self.write(path, data + tail, f"{len(tail)} bytes added")
        yield self.write(path, bytes(len(data)), "zeroed")

    def kinds(self, path: Path) -> Iterator[Mutation]:
        """Deleted, or something else than a file in its place; a link leads to the very same bytes."""
        name, place, located = path.relative_to(self.world.root), self.place(path), self.located(path)
        aside = path.with_name(f".{path.name}.aside")

        def link() -> None:
            path.rename(aside)
            path.symlink_to(aside)

        def replace(make: Callable[[], object]) -> Callable[[], None]:
            def act() -> None:
                path.unlink()
                make()

            return act

        if path == self.world.database:
            located = ("ledger.db",)
        if path not in self.world.leftovers:  # which gc may drop, and is one object less to count
            yield Mutation(place, f"{name} deleted", path.unlink, (path,), located)
        if path != self.world.database:
            yield Mutation(place, f"{name} a link", link, (path, aside), located)
        yield Mutation(place, f"{name} a folder", replace(path.mkdir), (path,), located)
        yield Mutation(place, f"{name} a pipe", replace(lambda: os.mkfifo(path)), (path,), located)
        yield Mutation(
            place, f"{name} a link to nowhere", replace(lambda: path.symlink_to("nowhere")), (path,), located
        )

    def swapped(self, one: Path, other: Path) -> Mutation:
        def act() -> None:
            first, second = one.read_bytes(), other.read_bytes()
            for path, data in ((one, second), (other, first)):
                path.chmod(0o644)
                path.write_bytes(data)

        names = f"{one.relative_to(self.world.root)} and {other.relative_to(self.world.root)}"
        return Mutation(self.place(one), f"{names} swapped", act, (one, other), self.located(one))

    def moved(self, path: Path) -> Iterator[Mutation]:
        """An object under another name, or in another folder."""
        for to in (path.with_name("f" * 64), path.with_name("away"), path.parents[1] / "zz" / path.name):

            def act(to: Path = to) -> None:
                to.parent.mkdir(exist_ok=True)
                path.rename(to)

            paths = (path, to) if to.parent == path.parent else (path, to, to.parent)
            located = (path.name[:10], to.name)
            yield Mutation("objects", f"{path.name[:10]} renamed to {to.name[:10]}", act, paths, located)

    def older(self, path: Path, objects: list[Path]) -> Iterator[Mutation]:
        """A tensor as another state had it: sound bytes, of another time."""
        data = self.world.sound[path][0]
        length = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + length]).items():
            start, stop = entry.get("data_offsets", (0, 0)) if name != "__metadata__" else (0, 0)
            for state in objects:
                blob = self.world.sound[state][0]
                if len(blob) == stop - start and blob != data[8 + length + start : 8 + length + stop]:
                    whole = data[: 8 + length + start] + blob + data[8 + length + stop :]
                    mutation = self.write(path, whole, f"{name} as in object {state.name[:10]}", "weights")
                    yield Mutation("weights", mutation.what, mutation.act, mutation.paths, (f"tensor {name} in",))

    def rewritten_headers(self, path: Path) -> Iterator[Mutation]:
        """The header says something else, consistently, in as many bytes: no parser would object."""
        data = self.world.sound[path][0]
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        names = [name for name in header if name != "__metadata__"]

        def again(what: str, new: dict[str, Any]) -> Iterator[Mutation]:
            text = json.dumps(new, separators=(",", ":")).encode()
            if len(text) <= length:
                whole = data[:8] + text.ljust(length) + data[8 + length :]
                yield self.write(path, whole, f"header: {what}", "header JSON rewritten")

        yield from again("spelt otherwise", header)
        yield from again("other order of keys", dict(reversed(header.items())))
        for name in names:
            entry = header[name]
            for dtype in {"F32": ("I32", "U32"), "BF16": ("F16", "I16"), "F16": ("BF16",)}.get(entry["dtype"], ()):
                yield from again(f"{name} of dtype {dtype}", header | {name: entry | {"dtype": dtype}})
            if len(set(entry["shape"])) > 1:
                yield from again(f"{name} transposed", header | {name: entry | {"shape": entry["shape"][::-1]}})
            yield from again(f"{name} flat", header | {name: entry | {"shape": [_product(entry["shape"])]}})
            renamed = {name[:-1] + "x" if key == name else key: value for key, value in header.items()}
            yield from again(f"{name} renamed", renamed)
            yield from again("metadata", header | {"__metadata__": {"a": "b"}})
        for one in names:
            for other in names:
                if one < other and header[one]["shape"] == header[other]["shape"]:
                    both = {one: header[other], other: header[one]}
                    yield from again(f"{one} and {other} exchanged", header | both)


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def mutations_of_files(world: TamperedWorld, chance: random.Random, scale: float) -> Iterator[Mutation]:
    """Of everything but the database's rows; `scale` 1 is the full number."""
    files = Files(world, chance)

    def some(count: int) -> int:
        return max(1, round(count * scale))

    checked = sorted(world.checked)
    objects = [path for path in checked if path.is_relative_to(world.workspace.objects)]
    editors = [path for path in checked if path.is_relative_to(world.workspace.editors)]
    model_files = [path for path in checked if path not in objects and path not in editors]
    weights = [path for path in model_files if path.suffix == ".safetensors"]
    papers = [path for path in world.sound if path not in world.checked and path.parent in world.models]

    def several(paths: list[Path]) -> list[Path]:
        return paths if scale >= 1 else chance.sample(paths, min(len(paths), max(2, round(len(paths) * scale * 4))))

    for path in several(objects):
        yield from files.flips(path, some(24))
        yield from files.sizes(path, 3)
        yield from files.kinds(path)
        yield from files.moved(path)
        yield files.swapped(path, chance.choice([other for other in objects if other != path]))
        data = world.sound[chance.choice(objects)][0]
        yield files.write(path, data, "replaced by another sound object")
    for path in several(editors):
        yield from files.flips(path, some(60))
        yield from files.sizes(path, 3)
        yield from files.kinds(path)
        yield files.swapped(path, chance.choice([other for other in editors if other != path]))
    for path in several(model_files):
        yield from files.flips(path, some(250 if path in weights else 60))
        yield from files.sizes(path, 4)
        yield from files.kinds(path)
        yield files.swapped(path, chance.choice([other for other in model_files if other != path]))
    for path in weights:
        yield from files.header_flips(path, some(150))
        for all_of_them in (list(files.rewritten_headers(path)), list(files.older(path, objects))):
            yield from all_of_them if scale >= 1 else chance.sample(all_of_them, min(4, len(all_of_them)))
    for path in papers:
        for mutation in files.flips(path, some(15)):
            yield Mutation("README, sidecar: not checked", mutation.what, mutation.act, mutation.paths, ())
    yield from _pages(files, world, chance, some)


def _pages(files: Files, world: TamperedWorld, chance: random.Random, some: Callable[[int], int]) -> Iterator[Mutation]:
    """The database as a file of pages."""
    path = world.database
    data = world.sound[path][0]
    page = int.from_bytes(data[16:18], "big")
    pages = len(data) // page
    for bit in sorted(chance.sample(range(8 * len(data)), some(2500))):
        yield files.write(path, flipped(data, bit), f"bit {bit} flipped")
    for bit in sorted(chance.sample(range(8 * 100), some(400))):
        yield files.write(path, flipped(data, bit), f"bit {bit} of its header flipped")
    for _ in range(some(60)):
        start = chance.randrange(pages)
        other = chance.choice([n for n in range(pages) if n != start])
        copy = data[other * page : (other + 1) * page]
        yield files.write(
            path, data[: start * page] + copy + data[(start + 1) * page :], f"page {start} replaced by page {other}"
        )
        yield files.write(path, data[: start * page] + bytes(page) + data[(start + 1) * page :], f"page {start} zeroed")
    for length in {0, 100, *(n * page for n in chance.sample(range(pages), some(pages))), chance.randrange(len(data))}:
        yield files.write(path, data[:length], f"cut to {length} bytes")
    for tail in (b"\0", bytes(page), b"x" * 3 * page):
        yield files.write(path, data + tail, f"{len(tail)} bytes added")
    yield files.write(path, safetensors_bytes({}), "replaced by another kind of file")
    yield from files.kinds(path)
