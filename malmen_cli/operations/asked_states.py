"""Hidden states below the first edited layer, kept from a capture or a first asking for what is asked again."""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from pathlib import Path

import psutil
import torch
from torch import Tensor

from malmen_cli.errors import MalmenError
from malmen_cli.language_models.language_model import KeepStates, LanguageModel
from malmen_cli.language_models.lower_states import LowerStates, starts_of, states_size, tokens_of
from malmen_cli.language_models.texts import Tokens
from malmen_cli.ledger.staged import StagedObject, temporary_folder
from malmen_cli.operations.tensors import buffer_of

BLOCK = 1024
"""Texts that batches are formed of, and whose states are in memory at a time."""

MEMORY = {"tmpfs", "ramfs"}
"""File systems that lie in memory."""

MOST, SHARE = 4 << 30, 4
"""Bytes that are kept at most, and the part (one over it) of what is free on the disk for temporary files."""


def states_limit() -> int:
    """Bytes of hidden states that may be kept; 0 where there is no folder for temporary files, or it is memory."""
    try:
        folder = temporary_folder().resolve()
        mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
        if next((mounts[path] for path in (folder, *folder.parents) if path in mounts), None) in MEMORY:
            return 0  # nobody has planned for them there
        return min(MOST, shutil.disk_usage(folder).free // SHARE)
    except (MalmenError, OSError):
        return 0


class AskedStates:
    """Predictions of a model whose lower blocks run once for each block of texts, whatever edits come in between.

    The states lie in a file without a name among the system's temporary ones. What the disk does not take, or does not
    give back, is run as a whole.

    Args:
        limit: bytes that may be kept; 0 where something below the first edited layer will change.
        batch_tokens: padded tokens per batch.
    """

    def __init__(self, model: LanguageModel, limit: int, *, batch_tokens: int | None = None) -> None:
        self._model, self._left, self._size, self.batch_tokens = model, limit, 0, batch_tokens
        self._file: StagedObject | None = None
        self._offsets: dict[bytes, int] = {}

    def predictions(self, texts: Sequence[Tokens]) -> list[list[int]]:
        """`LanguageModel.predictions` of a block of texts, which may have been noted before."""
        starts = starts_of(self._model, texts)
        if (kept := self._read(starts)) is not None:
            return self._model.predictions(texts, batch_tokens=self.batch_tokens, kept=kept)
        with self._noting(starts) as keep:
            return self._model.predictions(texts, batch_tokens=self.batch_tokens, keep=keep)

    def noting(self, texts: Sequence[Tokens]) -> AbstractContextManager[KeepStates | None]:
        """What takes the states of a block of texts as a pass over all of it finds them; None where none are wanted."""
        return self._noting(starts_of(self._model, texts))

    @contextmanager
    def _noting(self, starts: Mapping[tuple[int, ...], int]) -> Iterator[KeepStates | None]:
        size = states_size(self._model, starts)
        if not size or size > self._left or _name(starts) in self._offsets:
            yield None
            return
        kept = LowerStates(self._model, starts, self._room(starts))
        yield kept.keep
        self._write(_name(starts), kept.data)

    def _room(self, starts: Mapping[tuple[int, ...], int]) -> Tensor:
        return torch.empty(tokens_of(starts), self._model.lower_width, dtype=self._model.dtype)

    def _write(self, name: bytes, states: Tensor) -> None:
        try:
            self._file = self._file or StagedObject()
            self._file.write(buffer_of(states), self._size)
        except MalmenError:  # the disk has filled up meanwhile
            self._left = 0
            return
        self._offsets[name] = self._size
        self._size, self._left = self._size + states.nbytes, self._left - states.nbytes

    def _read(self, starts: Mapping[tuple[int, ...], int]) -> LowerStates | None:
        """The states of a block, where they were noted and can be read, all of them."""
        offset = self._offsets.get(_name(starts)) if self._offsets else None
        if self._file is None or offset is None:
            return None
        states = self._room(starts)
        try:
            self._file.read(buffer_of(states), offset)
        except MalmenError:
            return None
        return LowerStates(self._model, starts, states, filled=True)


def _name(starts: Mapping[tuple[int, ...], int]) -> bytes:
    """Of a block of texts, by what the model reads of them, in their order."""
    hasher = sha256()
    for ids in starts:
        hasher.update(array("q", [len(ids), *ids]).tobytes())
    return hasher.digest()
