"""What the frozen model makes of the training rows, computed once and kept on disk: rows (u, g) and reference states.

u and g of a frozen model never change, and neither does what it answers to unrelated prompts, so every epoch after the
first reads them back. Batches are formed in a fixed order, so that the same rows give the same bits on a resumed run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from malmen_cli.checkpoint.durable import in_words
from malmen_cli.editing.normalizer import Normalizer
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.tokenizing import Tokens

BLOCK = 256
"""Texts per captured block: batches are formed inside a block, in its order."""


class _Table:
    """A memory-mapped (rows, width) tensor file; the page cache decides how much of it sits in memory."""

    def __init__(self, path: Path, rows: int, width: int, dtype: torch.dtype) -> None:
        size = rows * width
        with in_words(path):
            _allocate(path, size * dtype.itemsize)
            try:
                self.data = torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(rows, width)
            except RuntimeError as error:  # how torch reports what the system refuses
                raise OSError(str(error)) from error


def _allocate(path: Path, size: int) -> None:
    """Make a file of so many bytes that are really there: a map into a hole of a full disk is a bus error, later."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


class Features:
    """Rows (u, g) of edit prompts, and final hidden states and keys of unrelated prompts.

    Args:
        folder: where the tables live; made anew. model: at its base weights.
        edits: edit prompts. unrelated: unrelated prompts.
        progress: called with (done, all) texts.

    Raises:
        MalmenError: the disk does not take the tables.
    """

    def __init__(
        self,
        folder: Path,
        model: LanguageModel,
        edits: Sequence[Tokens],
        unrelated: Sequence[Tokens],
        *,
        batch_tokens: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with in_words(folder):
            folder.mkdir(parents=True)
        self._edit_starts = _starts(edits)
        self._unrelated_starts = _starts(unrelated)
        n, m, dtype = self._edit_starts[-1], self._unrelated_starts[-1], model.dtype
        width = _width(model)
        self._keys = [_Table(folder / f"{i}.u", n, s.d_in, dtype) for i, s in enumerate(model.shapes)]
        self._grads = [_Table(folder / f"{i}.g", n, s.d_out, dtype) for i, s in enumerate(model.shapes)]
        self.unrelated_keys = [_Table(folder / f"{i}.k", m, s.d_in, dtype).data for i, s in enumerate(model.shapes)]
        self._hidden = _Table(folder / "hidden", m, width, dtype)
        self.normalizers = [Normalizer(s.d_in + s.d_out) for s in model.shapes]
        total = len(edits) + len(unrelated)
        for start in range(0, len(edits), BLOCK):
            self._capture_edits(model, edits[start : start + BLOCK], start, batch_tokens)
            progress(min(start + BLOCK, len(edits)), total)
        for start in range(0, len(unrelated), BLOCK):
            self._capture_unrelated(model, unrelated[start : start + BLOCK], start, batch_tokens)
            progress(len(edits) + min(start + BLOCK, len(unrelated)), total)

    def _capture_edits(self, model: LanguageModel, texts: Sequence[Tokens], first: int, batch_tokens: int) -> None:
        for batch, rows in model.capture(texts, batch_tokens=batch_tokens):
            index = self._index(self._edit_starts, [first + row for row in batch.rows])
            for layer, (keys, grads) in enumerate(zip(rows.keys, rows.value_grads, strict=True)):
                self._keys[layer].data[index] = keys.cpu()
                self._grads[layer].data[index] = grads.cpu()
        span = slice(self._edit_starts[first], self._edit_starts[first + len(texts)])
        for layer, normalizer in enumerate(self.normalizers):
            normalizer.update(torch.cat([self._keys[layer].data[span], self._grads[layer].data[span]], dim=1))

    @torch.no_grad()
    def _capture_unrelated(self, model: LanguageModel, texts: Sequence[Tokens], first: int, batch_tokens: int) -> None:
        for batch, keys, hidden in model.capture_reference(texts, batch_tokens=batch_tokens):
            index = self._index(self._unrelated_starts, [first + row for row in batch.rows])
            for layer, rows in enumerate(keys):
                self.unrelated_keys[layer][index] = rows.cpu()
            self._hidden.data[index] = hidden.cpu()

    @staticmethod
    def _index(starts: Sequence[int], texts: Sequence[int]) -> Tensor:
        return torch.cat([torch.arange(starts[t], starts[t + 1]) for t in texts])

    def rows(self, layer: int, texts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(u, g) of these edit prompts, text after text."""
        index = self._index(self._edit_starts, texts)
        return self._keys[layer].data[index], self._grads[layer].data[index]

    def sample(self, layer: int, size: int) -> tuple[Tensor, Tensor]:
        """(u, g) of the first `size` rows."""
        return self._keys[layer].data[:size], self._grads[layer].data[:size]

    def reference(self, texts: Sequence[int]) -> Tensor:
        """The base model's final hidden states (rows, width) at these unrelated prompts' supervised positions."""
        return self._hidden.data[self._index(self._unrelated_starts, texts)]


def table_sizes(model: LanguageModel, edits: Sequence[Tokens], unrelated: Sequence[Tokens]) -> list[int]:
    """Bytes of each file that `Features` will make."""
    n, m, item = _starts(edits)[-1], _starts(unrelated)[-1], model.dtype.itemsize
    per_layer = [(n * s.d_in * item, n * s.d_out * item, m * s.d_in * item) for s in model.shapes]
    return [size for sizes in per_layer for size in sizes] + [m * _width(model) * item]


def _width(model: LanguageModel) -> int:
    """Of the final hidden states."""
    return int(model.head.weight.shape[1])  # type: ignore[index]


def _starts(texts: Sequence[Tokens]) -> list[int]:
    starts = [0]
    for text in texts:
        starts.append(starts[-1] + text.supervised)
    return starts
