"""Hidden states below the first edited layer, kept on disk: no edit changes them, so each text is run there once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.texts import Tokens
from malmen_cli.training.tables import table


class LowerStates:
    """What the first edited block reads of each text (`LanguageModel.lower_states`), in the model's dtype.

    Two texts that the model reads alike share one place. A model whose lower blocks cannot be left out keeps nothing.

    Args:
        path: of the file. texts: which to keep, as many of the first as fit. limit: bytes on disk.
        filled: the file has been there, with all of them.
    """

    def __init__(
        self, path: Path, model: LanguageModel, texts: Iterable[Tokens], limit: int, *, filled: bool = False
    ) -> None:
        self._model = model
        self._starts = _starts(model, texts, limit)
        rows = sum(map(len, self._starts))
        self._data = table(path, rows, model.lower_width, model.dtype, there=filled) if rows else torch.empty(0)
        self._filled = set(self._starts) if filled else set[tuple[int, ...]]()

    def __contains__(self, text: Tokens) -> bool:
        """Whether the text has a place here."""
        return text.input_ids in self._starts

    def others(self, texts: Iterable[Tokens]) -> int:
        """How many texts have a place here and are none of these."""
        return len(self._starts.keys() - {text.input_ids for text in texts})

    def keep(self, texts: Sequence[Tokens], states: Tensor) -> None:
        """Take in (tokens, width) states of these texts, text after text; of those without a place nothing."""
        for text, part in zip(texts, states.cpu().split([len(text.input_ids) for text in texts]), strict=True):
            if text in self:
                start = self._starts[text.input_ids]
                self._data[start : start + len(part)] = part
                self._filled.add(text.input_ids)

    def fill(self, batch_tokens: int, block: int) -> Iterable[int]:
        """Run the model's lower blocks for the texts that have a place and nothing there; yields how many at a time."""
        left = (ids for ids in self._starts if ids not in self._filled)
        while texts := [Tokens(ids, ()) for ids in islice(left, block)]:
            for batch, states in self._model.lower_states(texts, batch_tokens=batch_tokens):
                self.keep([texts[row] for row in batch.rows], states)
            yield len(texts)

    def of(self, texts: Sequence[Tokens]) -> Tensor:
        """States (tokens, width) of texts that have a place, text after text."""
        starts = [(self._starts[text.input_ids], len(text.input_ids)) for text in texts]
        index = torch.cat([torch.arange(start, start + count) for start, count in starts])
        return self._data[index]


def states_size(model: LanguageModel, texts: Iterable[Tokens], limit: int) -> int:
    """Bytes that `LowerStates` will take."""
    rows = sum(map(len, _starts(model, texts, limit)))
    return rows * model.lower_width * model.dtype.itemsize


def _starts(model: LanguageModel, texts: Iterable[Tokens], limit: int) -> dict[tuple[int, ...], int]:
    """Where each text's states begin, by what the model reads of it."""
    starts: dict[tuple[int, ...], int] = {}
    if model.lower is None:
        return starts
    rows, most = 0, limit // (model.lower_width * model.dtype.itemsize)
    for text in texts:
        if text.input_ids in starts:
            continue
        if rows + len(text.input_ids) > most:
            break
        starts[text.input_ids] = rows
        rows += len(text.input_ids)
    return starts
