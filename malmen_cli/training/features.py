"""What the frozen model makes of the training rows, computed once and kept on disk: rows (u, g) and references.

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
from malmen_cli.language_models.edited_layers import EditedLayer
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.texts import Tokens

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
    """Rows (u, g) of edit prompts, and the head's references and the keys of unrelated prompts.

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
        self._edit_starts = [_starts(edits, layer) for layer in model.layers]
        self._unrelated_starts = [_starts(unrelated, layer) for layer in model.layers]
        self._label_starts = _starts(unrelated)
        self._keys, self._grads, self.unrelated_keys = [], [], []
        for i, (layer, shape) in enumerate(zip(model.layers, model.shapes, strict=True)):
            n, m = self._edit_starts[i][-1], self._unrelated_starts[i][-1]
            dtype, grad_dtype = _dtypes(model, layer)
            self._keys.append(_Table(folder / f"{i}.u", n, shape.d_in, dtype))
            self._grads.append(_Table(folder / f"{i}.g", n, shape.d_out, grad_dtype))
            self.unrelated_keys.append(_Table(folder / f"{i}.k", m, shape.d_in, dtype).data)
        self._references = _Table(folder / "references", self._label_starts[-1], model.head.width, model.head.dtype)
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
            for layer, (keys, grads) in enumerate(zip(rows.keys, rows.value_grads, strict=True)):
                index = _index(self._edit_starts[layer], [first + row for row in batch.rows])
                self._keys[layer].data[index] = keys.cpu()
                self._grads[layer].data[index] = grads.cpu()
        for layer, normalizer in enumerate(self.normalizers):
            span = slice(self._edit_starts[layer][first], self._edit_starts[layer][first + len(texts)])
            # Of a float16 model keys and gradients differ in dtype: both are widened to the gradients'.
            normalizer.update(torch.cat([self._keys[layer].data[span], self._grads[layer].data[span]], dim=1))

    @torch.no_grad()
    def _capture_unrelated(self, model: LanguageModel, texts: Sequence[Tokens], first: int, batch_tokens: int) -> None:
        for batch, rows, references in model.capture_reference(texts, batch_tokens=batch_tokens):
            which = [first + row for row in batch.rows]
            for layer, keys in enumerate(rows.keys):
                self.unrelated_keys[layer][_index(self._unrelated_starts[layer], which)] = keys.cpu()
            self._references.data[_index(self._label_starts, which)] = references.cpu()

    def rows(self, layer: int, texts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(u, g) of these edit prompts, text after text."""
        index = _index(self._edit_starts[layer], texts)
        return self._keys[layer].data[index], self._grads[layer].data[index]

    def sample(self, layer: int, size: int) -> tuple[Tensor, Tensor]:
        """(u, g) of the first `size` rows."""
        return self._keys[layer].data[:size], self._grads[layer].data[:size]

    def reference(self, texts: Sequence[int]) -> Tensor:
        """The base model's references (labels, width) of these unrelated prompts, which `head.logits_of` takes."""
        return self._references.data[_index(self._label_starts, texts)]


def table_sizes(model: LanguageModel, edits: Sequence[Tokens], unrelated: Sequence[Tokens]) -> list[int]:
    """Bytes of each file that `Features` will make."""
    sizes = [_starts(unrelated)[-1] * model.head.width * model.head.dtype.itemsize]
    for layer, shape in zip(model.layers, model.shapes, strict=True):
        n, m = _starts(edits, layer)[-1], _starts(unrelated, layer)[-1]
        dtype, grad_dtype = _dtypes(model, layer)
        sizes += [
            n * shape.d_in * dtype.itemsize,
            n * shape.d_out * grad_dtype.itemsize,
            m * shape.d_in * dtype.itemsize,
        ]
    return sizes


def _dtypes(model: LanguageModel, layer: EditedLayer) -> tuple[torch.dtype, torch.dtype]:
    """Of a layer's keys and of its value gradients, as they are captured."""
    dtype = layer.weight.dtype
    return dtype, dtype if model.loss_scale == 1 else torch.float32


def _index(starts: Sequence[int], texts: Sequence[int]) -> Tensor:
    return torch.cat([torch.arange(starts[t], starts[t + 1]) for t in texts])


def _starts(texts: Sequence[Tokens], layer: EditedLayer | None = None) -> list[int]:
    """Where each text's rows begin in a layer's table, and where the last one's end; without a layer, of its labels."""
    starts = [0]
    for text in texts:
        starts.append(starts[-1] + (text.supervised if layer is None else text.rows(layer.stack)))
    return starts
