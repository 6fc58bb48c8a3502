"""Tokenised texts, and padded batches of them: the same for every task."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from malmen_cli.language_models.families import Stack


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt with its target.

    Attributes:
        input_ids: what the model reads, or its encoder; of a causal model the prompt and all of the target but its last
            token. labels: what is supervised: the target's tokens, or its class.
        decoder_input_ids: what a decoder reads besides, empty where there is none.

    Labels are predicted at the last positions of what the answering stack reads; a class at the first one.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    decoder_input_ids: tuple[int, ...] = ()

    @property
    def supervised(self) -> int:
        """Number of labels."""
        return len(self.labels)

    def rows(self, stack: Stack, wide: bool = False) -> int:
        """Rows `(u, g)` that the text gives an edited layer of a stack; `wide`: of all tokens that the stack reads."""
        if stack == "encoder" or (wide and not self.decoder_input_ids):
            return len(self.input_ids)
        return len(self.decoder_input_ids) if wide else len(self.labels)

    @property
    def length(self) -> int:
        """Tokens read, by which batches are formed."""
        return len(self.input_ids) + len(self.decoder_input_ids)


@dataclass(frozen=True)
class Positions:
    """Where some texts of a batch give rows.

    Attributes:
        flat: (n,) indices into b * t, text by text. counts: of each text.
    """

    flat: Tensor
    counts: list[int]


@dataclass(frozen=True)
class Batch:
    """Some tokenised texts, padded on the right: b texts, t tokens of the longest, n labels.

    Attributes:
        rows: (b,) which texts of the list these are. input_ids, attention_mask: (b, t).
        decoder_input_ids: (b, t'), None where there is no decoder of its own.
        positions: (n,) flat indices, into b * t or b * t', of the positions that predict labels, text by text.
        labels: (n,) what they predict. text: (n,) index within the batch, and count: (n,) number of labels, of the text
            that a label belongs to. lengths: tokens that each text reads.
    """

    rows: tuple[int, ...]
    input_ids: Tensor
    attention_mask: Tensor
    decoder_input_ids: Tensor | None
    positions: Tensor
    labels: Tensor
    text: Tensor
    count: Tensor
    lengths: tuple[int, ...]

    def to(self, device: torch.device) -> Batch:
        tensors = {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}
        moved: dict[str, Any] = {name: x.to(device) for name, x in tensors.items()}
        return replace(self, **moved)

    def places(self, stack: Stack, wide: bool = False) -> Positions:
        """The positions that give rows to an edited layer of a stack (`families.CAPTURED`); `wide`: all it reads."""
        if wide and stack == "answer" and self.decoder_input_ids is not None:
            ends = self.positions[self.count.new_tensor(self._label_counts).cumsum(0) - 1].tolist()  # the last label's
            width = self.decoder_input_ids.shape[1]
            read = [torch.arange(place * width, end + 1) for place, end in enumerate(ends)]
            return Positions(torch.cat(read).to(self.positions.device), [len(part) for part in read])
        if stack == "answer" and not wide:
            return Positions(self.positions, torch.bincount(self.text, minlength=len(self.rows)).tolist())
        return Positions(self.attention_mask.flatten().nonzero().flatten(), list(self.lengths))

    @property
    def _label_counts(self) -> list[int]:
        return torch.bincount(self.text, minlength=len(self.rows)).tolist()

    def packed(self, states: Tensor) -> Tensor:
        """Of one value per token read (b, t, ...) those that are no padding (tokens, ...), text by text."""
        return states[self.attention_mask.bool().to(states.device)]

    def padded(self, states: Tensor) -> Tensor:
        """`packed` undone, with zeros for padding."""
        found = states.new_zeros(*self.attention_mask.shape, *states.shape[1:])
        found[self.attention_mask.bool().to(states.device)] = states
        return found


def tokens_at_once(dtype: torch.dtype) -> int:
    """Padded tokens of a batch where nobody asks for another number.

    As many as keep a processor busy in 16 bits; where numbers are twice as wide half as many do, in as much memory.
    """
    return 2048 // dtype.itemsize


PER_BATCH, SHARE = 64, 16
"""Padded tokens that take as long as a batch of its own does, whatever is in it (of GPT-2-small's shape on a CPU); and
one over their part of larger batches, which are for devices that have more to do at the beginning of one."""


def batches(texts: Sequence[Tokens], batch_tokens: int, *, padding: int, first: bool = False) -> Iterator[Batch]:
    """Padded batches of texts of similar length, at most `batch_tokens` padded tokens each (or one text).

    Args:
        padding: the token that stands, masked, where a text has ended. first: labels are predicted at the first
            position.
    """
    order = sorted(range(len(texts)), key=lambda i: (*_widths(texts[i]), i))
    for start, stop in _cuts([_widths(texts[i]) for i in order], batch_tokens):
        rows = order[start:stop]
        yield _batch(rows, [texts[i] for i in rows], padding, first)


def _widths(text: Tokens) -> tuple[int, int]:
    """Tokens that a model reads of a text, or its encoder and its decoder."""
    return len(text.input_ids), len(text.decoder_input_ids)


def _cuts(widths: Sequence[tuple[int, int]], batch_tokens: int) -> list[tuple[int, int]]:
    """From where to where the batches of sorted texts go: with the least padding, where a batch more counts as
    `PER_BATCH` tokens of it, or one `SHARE`-th of its budget.

    A batch ends where a length does, or has no room for more: one that ended elsewhere could take the next text over
    from a batch that is at least as wide.
    """
    ends = [i for i in range(1, len(widths) + 1) if i == len(widths) or widths[i] != widths[i - 1]]
    per_batch = max(PER_BATCH, batch_tokens // SHARE)
    least = {0: (0, 0)}  # by where a batch ends: what all texts up to there take at least, and where it begins then
    for start in range(len(widths)):
        if start not in least:
            continue
        last, decoded = start, 0
        for end in islice(ends, bisect_right(ends, start), None):
            wide, own = widths[end - 1]
            decoded = max(decoded, own)
            stop = min(end, start + max(1, batch_tokens // (wide + decoded)))
            if stop <= last:
                break
            cost = least[start][0] + (stop - start) * (wide + decoded) + per_batch
            if stop not in least or cost < least[stop][0]:
                least[stop] = cost, start
            last = stop
    cuts, stop = [], len(widths)
    while stop:
        start = least[stop][1]
        cuts.append((start, stop))
        stop = start
    return cuts[::-1]


def _batch(rows: Sequence[int], texts: Sequence[Tokens], padding: int, first: bool) -> Batch:
    input_ids, mask = _pad([text.input_ids for text in texts], padding)
    decodes = any(text.decoder_input_ids for text in texts)
    decoder_input_ids = _pad([text.decoder_input_ids for text in texts], padding)[0] if decodes else None
    width = (decoder_input_ids if decoder_input_ids is not None else input_ids).shape[1]
    positions: list[int] = []
    for place, text in enumerate(texts):
        stop = text.supervised if first else len(text.decoder_input_ids or text.input_ids)
        positions += range(place * width + stop - text.supervised, place * width + stop)
    counts = torch.tensor([text.supervised for text in texts])
    return Batch(
        rows=tuple(rows),
        input_ids=input_ids,
        attention_mask=mask,
        decoder_input_ids=decoder_input_ids,
        positions=torch.tensor(positions),
        labels=torch.tensor(list(chain.from_iterable(text.labels for text in texts))),
        text=torch.repeat_interleave(torch.arange(len(texts)), counts),
        count=torch.repeat_interleave(counts, counts),
        lengths=tuple(len(text.input_ids) for text in texts),
    )


def _pad(texts: Sequence[tuple[int, ...]], padding: int) -> tuple[Tensor, Tensor]:
    """(b, t) token ids and the mask of those that are not padding."""
    ids = torch.full((len(texts), max(map(len, texts))), padding, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, text in enumerate(texts):
        ids[place, : len(text)] = torch.tensor(text)
        mask[place, : len(text)] = 1
    return ids, mask
