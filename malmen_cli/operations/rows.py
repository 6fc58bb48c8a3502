"""Rows (u, d) of facts: captured once per fact and editor, kept as objects, read back for every later solve.

Neither holds more than a batch or a chunk of rows in memory, however many facts there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial, reduce

import torch
from torch import Tensor

from malmen_cli.checkpoint.durable import FREE_SPACE, Need, read_all, require_space
from malmen_cli.checkpoint.safetensors_file import TensorSlot, header_of
from malmen_cli.editing.editor import ROWS_AT_ONCE
from malmen_cli.errors import MalmenError, NumericalFailure, UnsafeFile, VerificationFailed
from malmen_cli.facts import Fact, printable
from malmen_cli.language_models.host_memory import give_back_freed, large_blocks_apart
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.texts import Tokens
from malmen_cli.ledger.objects import Checked, ObjectStore
from malmen_cli.ledger.records import NewRows, RowSlice
from malmen_cli.ledger.row_files import RowFile, RowSpans, row_file_size
from malmen_cli.ledger.staged import StagedObject, temporary_folder
from malmen_cli.methods.per_fact import RowEditor
from malmen_cli.operations.asked_states import BLOCK, AskedStates
from malmen_cli.operations.packed_texts import PackedTexts
from malmen_cli.operations.tensors import DTYPES, buffer_of

GIVE_BACK_AFTER = 4
"""Batches of a capture after which the gaps that they left in the heap go back: the next one then has fresh memory."""

_STORED = {**DTYPES, "F64": torch.float64}
_NAMES = {dtype: name for name, dtype in _STORED.items()}


def capture_rows(
    model: LanguageModel,
    editor: RowEditor,
    facts: Sequence[Fact],
    *,
    batch_tokens: int | None,
    texts: Sequence[Tokens] | None = None,
    states: AskedStates | None = None,
    objects: ObjectStore | None = None,
    require_room: Callable[[Sequence[int]], None] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[NewRows]:
    """Capture the facts' rows at the base weights into files, one per layer, in the facts' order.

    Keys are kept in what the editor keeps them in, the model's dtype; value differences in float32.

    Args:
        texts: the facts' edit prompts, where they are tokenised already. states: where they will be asked.
        objects: where the rows are to be stored; None for rows that are not.
        require_room: is told the files' sizes in bytes before the model is run, and raises where they do not fit, with
            whatever else is to be written then; None for rows alone.

    Raises:
        NumericalFailure: a row that is not finite, naming the fact. BadFacts: facts that do not fit the model.
        MalmenError: the rows would not fit on the disk.
    """
    if texts is None:
        texts = PackedTexts(model.tokenizing.all_of((fact.prompt, fact.target) for fact in facts))
    edits = [fact.edit_digest for fact in facts]
    kinds = [(layer.stack, wide) for layer, wide in zip(model.layers, model.spread(editor.everywhere), strict=True)]
    spans = {kind: RowSpans(edits, (text.rows(*kind) for text in texts)) for kind in dict.fromkeys(kinds)}
    packs = [_Pack(spans[kind], editor, index, model) for index, kind in enumerate(kinds)]
    sizes = [pack.size for pack in packs]
    if require_room is not None:
        require_room(sizes)
    elif objects is not None:
        require_space([Need(objects.root, tuple(sizes), "new rows")])
    else:
        how = f"{FREE_SPACE}, or set TMPDIR to a folder on a larger disk"
        require_space([Need(temporary_folder(), tuple(sizes), "rows, for a while")], how)
    staged: list[StagedObject] = []
    try:
        for pack in packs:
            staged.append(StagedObject(None if objects is None else objects.root))
            pack.open(staged[-1])
        capture = partial(model.capture, batch_tokens=batch_tokens, everywhere=editor.everywhere)
        with torch.no_grad():
            for start in range(0, len(texts), BLOCK):
                block = texts[start : start + BLOCK]
                with nullcontext() if states is None else states.noting(block) as keep:
                    for number, (batch, rows) in enumerate(capture(block, lower=keep is not None), 1):
                        if keep is not None and rows.lower_states is not None:
                            keep([block[row] for row in batch.rows], rows.lower_states)
                        places = [start + row for row in batch.rows]
                        for pack, keys, value_grads in zip(packs, rows.keys, rows.value_grads, strict=True):
                            pack.capture(places, keys, value_grads)
                        if number % GIVE_BACK_AFTER == 0 and model.device.type == "cpu":  # a GPU's are not in this heap
                            give_back_freed()
                del keep  # with what it was given: the next block's takes as much
                give_back_freed()
                with large_blocks_apart():
                    for pack in packs:
                        pack.edit(start, start + len(block), facts)
                progress(start + len(block), len(texts))
        return [
            NewRows(layer.name, data, pack.spans) for layer, data, pack in zip(model.layers, staged, packs, strict=True)
        ]
    except BaseException:
        for data in staged:
            data.discard()
        raise


class _Pack:
    """A layer's rows in the making: of each block of facts (u, g) as its batches give them, then (u, d) of all.

    A hyper-network reads its matrices once for `ROWS_AT_ONCE` rows, where a batch has some tens.

    Args:
        spans: where the facts' rows belong. index: the layer's, of the editor and of the model.
    """

    def __init__(self, spans: RowSpans, editor: RowEditor, index: int, model: LanguageModel) -> None:
        self.spans, self._model = spans, model
        self._rows = partial(editor.rows, index)
        self._dtype, self._shape = editor.key_dtype(model.dtype), model.layers[index].shape
        self._columns = (_NAMES[self._dtype], self._shape.d_in), ("F32", self._shape.d_out)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return row_file_size(self.spans.rows, *self._columns)

    def open(self, staged: StagedObject) -> None:
        """Begin the file."""
        self._file = RowFile(staged, self.spans.rows, *self._columns)

    def capture(self, places: Sequence[int], keys: Tensor, value_grads: Tensor) -> None:
        """Take in (u, g) of some facts, which follow one another in the tensors."""
        u, g = buffer_of(keys.to(self._dtype)), buffer_of(value_grads.float())
        begin = 0
        for place in places:
            start, end = self.spans.start(place), begin + self.spans.start(place + 1) - self.spans.start(place)
            self._file.write(start, *(x[begin * len(x) // len(keys) : end * len(x) // len(keys)] for x in (u, g)))
            begin = end
        assert begin == len(keys), "the model gives other rows than the texts have"

    def edit(self, first: int, stop: int, facts: Sequence[Fact]) -> None:
        """Put (u, d) in the place of (u, g) of the facts from one place to another.

        Raises:
            NumericalFailure: a row that is not finite, naming the fact.
        """
        begin, end = self.spans.start(first), self.spans.start(stop)
        for start in range(begin, end, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, end - start)
            u = torch.empty(count, self._shape.d_in, dtype=self._dtype)
            g = torch.empty(count, self._shape.d_out)
            self._file.read(start, buffer_of(u), buffer_of(g))
            keys, value_grads = u.to(self._model.device), g.to(self._model.device)
            with self._model.autocast():
                left, right = self._rows(keys, value_grads)
            left, right = left.to(self._dtype), right.float()
            finite = torch.isfinite(left).all(1) & torch.isfinite(right).all(1)
            if not bool(finite.all()):
                place = self.spans.place_of(start + finite.tolist().index(False))
                raise NumericalFailure(
                    f"the rows of '{printable(facts[place].prompt)}' are not finite",
                    remedy="The model overflows on this fact: leave it out.",
                )
            self._file.write(start, b"" if left is keys else buffer_of(left), buffer_of(right))


class RowReader:
    """Stored rows by fact. Each pack is checked against its digest once per layer, which `close_layer` ends.

    Args:
        objects: where packs lie. fresh: rows that are not stored yet.
    """

    def __init__(self, objects: ObjectStore, fresh: Sequence[NewRows] = ()) -> None:
        self._objects = objects
        self._fresh = {rows.data.digest: rows.data for rows in fresh}
        self._checked: Checked = {}
        self._slots: dict[str, tuple[TensorSlot, TensorSlot]] = {}

    def close_layer(self) -> None:
        self._checked.clear()
        self._slots.clear()

    def __call__(self, row: RowSlice) -> tuple[Tensor, Tensor]:
        """(u, d) of one fact; raises as `chunk` does."""
        return self.chunk([row])

    def chunk(self, rows: Sequence[RowSlice]) -> tuple[Tensor, Tensor]:
        """(u, d) of some facts, one after another: (n, d_in) and (n, d_out), as they are stored.

        Raises:
            VerificationFailed: an object is damaged, or shorter than the ledger says, or does not go with the others.
        """
        by_object: dict[str, list[tuple[RowSlice, int]]] = {}
        total = 0
        for row in rows:
            by_object.setdefault(row.object, []).append((row, total))
            total += row.count
        assert by_object, "no rows were asked for"
        # The ledger may say anything: no memory is taken for rows before it is known that files hold as many.
        for digest, wanted in by_object.items():
            if digest not in self._slots:
                with self._opened(digest):
                    pass
            for slot in self._slots[digest]:
                _require_within(slot, wanted, digest)
        keys, value_diffs = (self._room(list(by_object), part, total) for part in (0, 1))
        for digest, wanted in by_object.items():
            with self._opened(digest) as descriptor:
                for slot, found in zip(self._slots[digest], (keys, value_diffs), strict=True):
                    _read(descriptor, slot, found, wanted, digest)
        return keys, value_diffs

    def _room(self, digests: Sequence[str], part: int, total: int) -> Tensor:
        """A tensor for u (part 0) or d (1) of these packs together, of a dtype that holds the numbers of all.

        A layer's packs are of one width. Their dtype is that of the model's layers when they were captured.
        """
        slots = [self._slots[digest][part] for digest in digests]
        width = slots[0].shape[1]
        for digest, slot in zip(digests, slots, strict=True):
            if slot.shape[1] != width:
                raise VerificationFailed(
                    f"stored rows {digest[:17]} are of another width than others of the same layer",
                    remedy="run malmen verify",
                )
        return torch.empty((total, width), dtype=reduce(torch.promote_types, (_STORED[slot.dtype] for slot in slots)))

    @contextmanager
    def _opened(self, digest: str) -> Iterator[int]:
        """A descriptor of the pack's file, which has been looked at."""
        if digest in self._fresh:
            self._look(digest, self._fresh[digest].descriptor)
            yield self._fresh[digest].descriptor
        else:
            with self._objects.opened(digest, self._checked) as file:
                self._look(digest, file.fileno())
                yield file.fileno()

    def _look(self, digest: str, descriptor: int) -> None:
        if digest in self._slots:
            return
        path = self._objects.path(digest)
        try:
            slots = header_of(descriptor, path).slots
            pair = slots["u"], slots["d"]
        except (KeyError, OSError, UnsafeFile) as error:
            why = error.message if isinstance(error, MalmenError) else f"it has no {error}"
            if isinstance(error, OSError):
                why = error.strerror or str(error)
            raise VerificationFailed(
                f"stored rows {digest[:17]} cannot be read: {why}", remedy="`malmen verify` names what is damaged."
            ) from None
        if not all(len(slot.shape) == 2 and slot.dtype in _STORED for slot in pair):
            raise VerificationFailed(f"stored rows {digest[:17]} are no rows of numbers", remedy="run malmen verify")
        self._slots[digest] = pair


def _require_within(slot: TensorSlot, wanted: Sequence[tuple[RowSlice, int]], digest: str) -> None:
    """Also of all together: no two facts have a row in common."""
    rows = slot.shape[0]
    are_within = all(row.start >= 0 and row.count >= 0 and row.start + row.count <= rows for row, _ in wanted)
    if not are_within or sum(row.count for row, _ in wanted) > rows:
        raise VerificationFailed(
            f"stored rows {digest[:17]} are shorter than the ledger says", remedy="run malmen verify"
        )


def _read(
    descriptor: int, slot: TensorSlot, found: Tensor, wanted: Sequence[tuple[RowSlice, int]], digest: str
) -> None:
    """Rows of one tensor into their places."""
    dtype = _STORED[slot.dtype]
    width = slot.shape[1] * dtype.itemsize
    into = buffer_of(found) if dtype == found.dtype else memoryview(b"")
    for row, place in wanted:
        offset = slot.start + row.start * width
        if dtype == found.dtype:
            _read_at(descriptor, into[place * width : (place + row.count) * width], offset, digest)
        else:
            own = torch.empty((row.count, slot.shape[1]), dtype=dtype)
            _read_at(descriptor, buffer_of(own), offset, digest)
            found[place : place + row.count] = own


def _read_at(descriptor: int, part: memoryview, offset: int, digest: str) -> None:
    try:
        is_whole = read_all(descriptor, part, offset)
    except OSError as error:
        raise VerificationFailed(
            f"stored rows {digest[:17]} cannot be read: {error.strerror or error}",
            remedy="`malmen verify` names what is damaged.",
        ) from error
    if not is_whole:
        raise VerificationFailed(f"stored rows {digest[:17]} end too early", remedy="run malmen verify")
