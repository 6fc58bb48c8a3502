"""Files of stored rows: safetensors with `u` and `d`, written anywhere in them, read in slices; and who has which rows.

What is held per fact here is a few numbers, not objects: facts come by the ten thousand.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import overload

from malmen_cli.checkpoint.safetensors_file import BITS, header_for
from malmen_cli.errors import VerificationFailed
from malmen_cli.ledger.records import RowSlice, RowSpan
from malmen_cli.ledger.staged import StagedObject


class RowSpans(Sequence[RowSpan]):
    """The spans of a pack in which the rows of its facts lie one after another, in the facts' order.

    Args:
        edit_digests: of the facts. counts: rows of each.
    """

    def __init__(self, edit_digests: Sequence[str], counts: Iterable[int]) -> None:
        self.edit_digests = edit_digests
        self._starts = array("I", [0])
        for count in counts:
            self._starts.append(self._starts[-1] + count)

    def start(self, place: int) -> int:
        """The first row of the fact at a place; of the place after the last one, the number of rows."""
        return self._starts[place]

    def place_of(self, row: int) -> int:
        """The place of the fact that has a row."""
        return bisect_right(self._starts, row) - 1

    @property
    def rows(self) -> int:
        return self._starts[-1]

    def __len__(self) -> int:
        return len(self.edit_digests)

    @overload
    def __getitem__(self, place: int) -> RowSpan: ...
    @overload
    def __getitem__(self, place: slice) -> list[RowSpan]: ...
    def __getitem__(self, place: int | slice) -> RowSpan | list[RowSpan]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        start = self._starts[place]
        return RowSpan(self.edit_digests[place], start, self._starts[place + 1] - start)


def row_file_size(rows: int, keys: tuple[str, int], value_diffs: tuple[str, int]) -> int:
    """Bytes of a pack with so many rows; the rest as `RowFile` takes it."""
    header, _ = _header(rows, keys, value_diffs)
    return len(header) + rows * (_width(keys) + _width(value_diffs))


def _header(rows: int, keys: tuple[str, int], value_diffs: tuple[str, int]) -> tuple[bytes, dict[str, int]]:
    return header_for({"u": (keys[0], (rows, keys[1])), "d": (value_diffs[0], (rows, value_diffs[1]))})


def _width(part: tuple[str, int]) -> int:
    """Bytes of a row."""
    return part[1] * BITS[part[0]] // 8


class RowFile:
    """A pack in the making: room for all its rows, which are written in any order.

    Args:
        staged: what to write into. rows: in all. keys, value_diffs: dtype (as safetensors has it) and width of either.
    """

    def __init__(self, staged: StagedObject, rows: int, keys: tuple[str, int], value_diffs: tuple[str, int]) -> None:
        self.staged = staged
        header, offsets = _header(rows, keys, value_diffs)
        staged.write(header, 0)
        self._u, self._d = (offsets["u"], _width(keys)), (offsets["d"], _width(value_diffs))

    def write(self, start: int, keys: bytes | memoryview, value_diffs: bytes | memoryview) -> None:
        """The bytes of some rows, from row `start` on."""
        for (offset, width), data in ((self._u, keys), (self._d, value_diffs)):
            if len(data):
                self.staged.write(data, offset + start * width)

    def read(self, start: int, keys: memoryview, value_diffs: memoryview) -> None:
        """Fill both with the bytes of rows that were written, from row `start` on."""
        for (offset, width), into in ((self._u, keys), (self._d, value_diffs)):
            self.staged.read(into, offset + start * width)


class RowTable(Sequence[RowSlice]):
    """Where the stored rows of some edits lie at one layer, in the order of the edits.

    Args:
        edits: edit digests in ascending order.
    """

    def __init__(self, edits: Sequence[str]) -> None:
        self._edits = edits
        self._object = array("i", bytes(array("i").itemsize * len(edits)))  # place of its object, from 1; 0 for none
        self._start = array("q", bytes(array("q").itemsize * len(edits)))
        self._count = array("i", bytes(array("i").itemsize * len(edits)))
        self._objects: dict[str, int] = {}
        self._names: list[str] = []

    def note(self, rows: Mapping[str, RowSlice]) -> None:
        """Take in where the rows of some edits lie; those of other edits are passed over."""
        for edit, row in rows.items():
            self._note(edit, row.object, row.start, row.count)

    def note_pack(self, object: str, spans: Sequence[RowSpan]) -> None:
        """Take in a pack."""
        for span in spans:
            self._note(span.edit_digest, object, span.start, span.count)

    def _note(self, edit: str, object: str, start: int, count: int) -> None:
        place = self._place(edit)
        if place is not None:
            if object not in self._objects:
                self._names.append(object)
                self._objects[object] = len(self._names)
            try:
                self._object[place], self._start[place], self._count[place] = self._objects[object], start, count
            except OverflowError:
                raise VerificationFailed(
                    f"the ledger says that stored rows {object[:17]} lie beyond any file", remedy="run malmen verify"
                ) from None

    def _place(self, edit: str) -> int | None:
        place = bisect_left(self._edits, edit)
        return place if place < len(self._edits) and self._edits[place] == edit else None

    def lacks(self, edit: str) -> bool:
        """Whether it is one of the edits, and its rows lie nowhere yet."""
        place = self._place(edit)
        return place is not None and not self._object[place]

    def __len__(self) -> int:
        return len(self._edits)

    @overload
    def __getitem__(self, place: int) -> RowSlice: ...
    @overload
    def __getitem__(self, place: slice) -> list[RowSlice]: ...
    def __getitem__(self, place: int | slice) -> RowSlice | list[RowSlice]:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        object = self._object[place]
        if not object:
            raise KeyError(self._edits[place])
        return RowSlice(self._names[object - 1], self._start[place], self._count[place])
