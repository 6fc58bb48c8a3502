"""What the frozen model makes of the training rows, computed once and kept on disk.

Rows (u, g) of edit prompts, references of unrelated prompts, and of every prompt the hidden states below the first
edited layer never change: every epoch after the first reads them back, and so does a resumed run. Batches are formed in
a fixed order, so that the same rows give the same bits.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from malmen_cli import __version__
from malmen_cli.checkpoint.durable import in_words, write_durably
from malmen_cli.editing.normalizer import Normalizer
from malmen_cli.language_models.edited_layers import EditedLayer
from malmen_cli.language_models.language_model import LanguageModel, Rows
from malmen_cli.language_models.lower_states import LowerStates, starts_of, states_size, tokens_of
from malmen_cli.language_models.texts import Batch, Tokens
from malmen_cli.training.rows import TrainingRow
from malmen_cli.training.tables import flush, table

COMPLETE = "complete.json"
"""Written when every table is: a killed run leaves none, and its tables are made anew."""

BLOCK = 256
"""Texts per captured block: batches are formed inside a block, in its order."""


class Features:
    """Rows (u, g) of edit prompts, the head's references and the keys of unrelated prompts, and hidden states.

    Args:
        folder: where the tables live. model: at its base weights.
        rows: training rows; text i of the edit prompts is row i's.
        references: whether unrelated prompts are captured; held-out rows have no use for it.
        kept_states: bytes of hidden states kept at most.
        asked: whether edit prompts are passed through the edited model too, so that their hidden states are worth
            keeping.
        everywhere: edit prompts give rows at every token whose value gradient is not zero.
        progress: called with (done, all) texts.

    Raises:
        MalmenError: the disk does not take the tables.
    """

    def __init__(
        self,
        folder: Path,
        model: LanguageModel,
        rows: Sequence[TrainingRow],
        *,
        batch_tokens: int,
        kept_states: int,
        references: bool = True,
        asked: bool = True,
        everywhere: bool = False,
        reuse: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        sizes = table_sizes(model, rows, kept_states, references=references, asked=asked, everywhere=everywhere)
        self._everywhere = everywhere
        made_with = _made_with(model, batch_tokens, sizes)
        reuse = reuse and _completed(folder, made_with, sizes)
        if not reuse:
            with in_words(folder):
                (folder / COMPLETE).unlink(missing_ok=True)  # first: a kill among the tables must not leave it there
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
        edits, unrelated, self._first_unrelated = _captured(rows, references)
        spread = model.spread(everywhere)
        self._edit_starts = [_starts(edits, layer, wide) for layer, wide in zip(model.layers, spread, strict=True)]
        self._unrelated_starts = [_starts(unrelated, layer) for layer in model.layers]
        self._label_starts = _starts(unrelated)
        self._keys, self._grads, self.unrelated_keys = [], [], []
        for i, (layer, shape) in enumerate(zip(model.layers, model.shapes, strict=True)):
            n, m = self._edit_starts[i][-1], self._unrelated_starts[i][-1]
            dtype, grad_dtype = _dtypes(model, layer)
            self._keys.append(table(folder / f"{i}.u", n, shape.d_in, dtype, there=reuse))
            self._grads.append(table(folder / f"{i}.g", n, shape.d_out, grad_dtype, there=reuse))
            self.unrelated_keys.append(table(folder / f"{i}.k", m, shape.d_in, dtype, there=reuse))
        labels, head = self._label_starts[-1], model.head
        self._references = table(folder / "references", labels, head.width, head.dtype, there=reuse)
        self.normalizers = [Normalizer(s.d_in + s.d_out) for s in model.shapes]
        places = starts_of(model, _passed(rows, asked), kept_states)
        states = None
        if places:
            states = table(folder / "states", tokens_of(places), model.lower_width, model.dtype, there=reuse)
        self.lower = LowerStates(model, places, states, filled=reuse)
        if reuse:
            for start in range(0, len(edits), BLOCK):
                self._count(start, len(edits[start : start + BLOCK]))
            return
        done, total = 0, len(edits) + len(unrelated) + self.lower.others([*edits, *unrelated])
        for start in range(0, len(edits), BLOCK):
            self._capture_edits(model, edits[start : start + BLOCK], start, batch_tokens)
            done += len(edits[start : start + BLOCK])
            progress(done, total)
        for start in range(0, len(unrelated), BLOCK):
            self._capture_unrelated(model, unrelated[start : start + BLOCK], start, batch_tokens)
            done += len(unrelated[start : start + BLOCK])
            progress(done, total)
        for count in self.lower.fill(batch_tokens, BLOCK):
            done += count
            progress(done, total)
        flush(folder)
        write_durably(folder / COMPLETE, made_with)

    def _capture_edits(self, model: LanguageModel, texts: Sequence[Tokens], first: int, batch_tokens: int) -> None:
        everywhere = self._everywhere
        for batch, rows in model.capture(texts, batch_tokens=batch_tokens, lower=True, everywhere=everywhere):
            self._keep(texts, batch, rows)
            for layer, (keys, grads) in enumerate(zip(rows.keys, rows.value_grads, strict=True)):
                index = _index(self._edit_starts[layer], [first + row for row in batch.rows])
                self._keys[layer][index] = keys.cpu()
                self._grads[layer][index] = grads.cpu()
        self._count(first, len(texts))

    def _count(self, first: int, texts: int) -> None:
        """Take the rows of some edit prompts into the moments."""
        for layer, normalizer in enumerate(self.normalizers):
            span = slice(self._edit_starts[layer][first], self._edit_starts[layer][first + texts])
            # Of a float16 model keys and gradients differ in dtype: both are widened to the gradients'.
            normalizer.update(torch.cat([self._keys[layer][span], self._grads[layer][span]], dim=1))

    @torch.no_grad()
    def _capture_unrelated(self, model: LanguageModel, texts: Sequence[Tokens], first: int, batch_tokens: int) -> None:
        for batch, rows, references in model.capture_reference(texts, batch_tokens=batch_tokens, lower=True):
            self._keep(texts, batch, rows)
            which = [first + row for row in batch.rows]
            for layer, keys in enumerate(rows.keys):
                self.unrelated_keys[layer][_index(self._unrelated_starts[layer], which)] = keys.cpu()
            self._references[_index(self._label_starts, which)] = references.cpu()

    def _keep(self, texts: Sequence[Tokens], batch: Batch, rows: Rows) -> None:
        if rows.lower_states is not None:
            self.lower.keep([texts[row] for row in batch.rows], rows.lower_states)

    def rows(self, layer: int, texts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(u, g) of these edit prompts, text after text."""
        index = _index(self._edit_starts[layer], texts)
        return self._keys[layer][index], self._grads[layer][index]

    def sample(self, layer: int, size: int) -> tuple[Tensor, Tensor]:
        """(u, g) of the first `size` rows."""
        return self._keys[layer][:size], self._grads[layer][:size]

    def reference(self, texts: Sequence[tuple[int, int]]) -> Tensor:
        """The base model's references (labels, width), which `head.logits_of` takes.

        Args:
            texts: unrelated prompts, as (row, which of its unrelated prompts).
        """
        return self._references[_index(self._label_starts, [self._first_unrelated[row] + i for row, i in texts])]


def table_sizes(
    model: LanguageModel,
    rows: Sequence[TrainingRow],
    kept_states: int,
    *,
    references: bool = True,
    asked: bool = True,
    everywhere: bool = False,
) -> list[int]:
    """Bytes of each file that `Features` will make, that of the hidden states last."""
    edits, unrelated, _ = _captured(rows, references)
    sizes = [_starts(unrelated)[-1] * model.head.width * model.head.dtype.itemsize]
    for layer, shape, wide in zip(model.layers, model.shapes, model.spread(everywhere), strict=True):
        n, m = _starts(edits, layer, wide)[-1], _starts(unrelated, layer)[-1]
        dtype, grad_dtype = _dtypes(model, layer)
        sizes += [
            n * shape.d_in * dtype.itemsize,
            n * shape.d_out * grad_dtype.itemsize,
            m * shape.d_in * dtype.itemsize,
        ]
    return [*sizes, states_size(model, starts_of(model, _passed(rows, asked), kept_states))]


def _made_with(model: LanguageModel, batch_tokens: int, sizes: Sequence[int]) -> bytes:
    """What the bits of the tables depend on besides facts, base and settings, which name a run's folder."""
    versions = [__version__, torch.__version__, version("transformers")]
    machine = [str(model.device), torch.get_num_threads(), str(model.dtype)]
    return json.dumps({"versions": versions, "machine": machine, "batch_tokens": batch_tokens, "bytes": sizes}).encode()


def _completed(folder: Path, made_with: bytes, sizes: Sequence[int]) -> bool:
    """Whether a folder holds all tables of such a run, of so many bytes."""
    marker = folder / COMPLETE
    if folder.is_symlink() or marker.is_symlink() or not marker.is_file():
        return False
    if marker.stat().st_size >= 1 << 16 or marker.read_bytes() != made_with:
        return False
    found = (path.lstat().st_size for path in folder.iterdir() if path != marker)
    return sorted(filter(None, found)) == sorted(filter(None, sizes))


def _captured(rows: Sequence[TrainingRow], references: bool) -> tuple[list[Tokens], list[Tokens], list[int]]:
    """Edit prompts, unrelated prompts, and where each row's unrelated prompts begin among them."""
    first: list[int] = []
    unrelated: list[Tokens] = []
    for row in rows:
        first.append(len(unrelated))
        unrelated += row.unrelated if references else ()
    return [row.edit for row in rows], unrelated, first


def _passed(rows: Sequence[TrainingRow], asked: bool) -> Iterator[Tokens]:
    """What is passed through the edited model, row after row."""
    for row in rows:
        yield from row.equivalent
        yield from row.unrelated
        if asked:
            yield row.edit


def _dtypes(model: LanguageModel, layer: EditedLayer) -> tuple[torch.dtype, torch.dtype]:
    """Of a layer's keys and of its value gradients, as they are captured."""
    dtype = layer.weight.dtype
    return dtype, dtype if model.loss_scale == 1 else torch.float32


def _index(starts: Sequence[int], texts: Sequence[int]) -> Tensor:
    return torch.cat([torch.arange(starts[t], starts[t + 1]) for t in texts])


def _starts(texts: Sequence[Tokens], layer: EditedLayer | None = None, wide: bool = False) -> list[int]:
    """Where each text's rows begin in a layer's table, and where the last one's end; without a layer, of its labels.

    Args:
        wide: tokens that predict no label give rows too.
    """
    starts = [0]
    for text in texts:
        starts.append(starts[-1] + (text.supervised if layer is None else text.rows(layer.stack, wide)))
    return starts
