"""Hidden states below the first edited layer, kept: no edit changes them, so each text is run there once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.texts import Tokens


class LowerStates:
    """What the first edited block reads of each text (`LanguageModel.lower_states`), in the model's dtype.

    Two texts that the model reads alike share one place.

    Args:
        starts: as `starts_of` gives them. data: (tokens, width), room for all of them; None makes it, on the model's
            device. filled: what has a place is there already.
    """

    def __init__(
        self,
        model: LanguageModel,
        starts: Mapping[tuple[int, ...], int],
        data: Tensor | None = None,
        *,
        filled: bool = False,
    ) -> None:
        self._model, self._starts = model, starts
        if data is None:
            width = model.lower_width if starts else 0
            data = torch.empty(tokens_of(starts), width, dtype=model.dtype, device=model.device)
        self.data = data
        self._filled = set(starts) if filled else set[tuple[int, ...]]()

    def __contains__(self, text: Tokens) -> bool:
        """Whether the text has a place here."""
        return text.input_ids in self._starts

    def others(self, texts: Iterable[Tokens]) -> int:
        """How many texts have a place here and are none of these."""
        return len(self._starts.keys() - {text.input_ids for text in texts})

    def keep(self, texts: Sequence[Tokens], states: Tensor) -> None:
        """Take in (tokens, width) states of these texts, text after text; of those without a place nothing."""
        parts = states.to(self.data.device).split([len(text.input_ids) for text in texts])
        for text, part in zip(texts, parts, strict=True):
            if text in self:
                start = self._starts[text.input_ids]
                self.data[start : start + len(part)] = part
                self._filled.add(text.input_ids)

    def fill(self, batch_tokens: int, block: int) -> Iterator[int]:
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
        return self.data[index.to(self.data.device)]


def starts_of(model: LanguageModel, texts: Iterable[Tokens], limit: int | None = None) -> dict[tuple[int, ...], int]:
    """Where the states of each text begin, by what the model reads of it; nothing where no blocks can be left out.

    Args:
        limit: bytes that hold as many of the first as have a place.
    """
    starts: dict[tuple[int, ...], int] = {}
    if model.lower is None:
        return starts
    rows, most = 0, None if limit is None else limit // (model.lower_width * model.dtype.itemsize)
    for text in texts:
        if text.input_ids in starts:
            continue
        if most is not None and rows + len(text.input_ids) > most:
            break
        starts[text.input_ids] = rows
        rows += len(text.input_ids)
    return starts


def tokens_of(starts: Mapping[tuple[int, ...], int]) -> int:
    """Tokens that have a place: rows of the states."""
    return sum(map(len, starts))


def states_size(model: LanguageModel, starts: Mapping[tuple[int, ...], int]) -> int:
    """Bytes that the states take."""
    return tokens_of(starts) * model.lower_width * model.dtype.itemsize if starts else 0
