"""From prompt and target to token ids, supervised positions and padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from malmen_cli.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt with its target, cut after the last target token.

    Attributes:
        ids: all tokens. start: index of the first target token; ids[start:] are supervised, each predicted at the
            position before it.
    """

    ids: tuple[int, ...]
    start: int

    @property
    def supervised(self) -> int:
        """Number of supervised tokens, which is the number of rows `(u, g)` they give per layer."""
        return len(self.ids) - self.start


@dataclass(frozen=True)
class Batch:
    """Some tokenised texts, padded on the right.

    Attributes:
        rows: (b,) which texts of the list these are. input_ids, attention_mask: (b, t).
        positions: (n,) flat indices into b * t of the positions that predict supervised tokens, text by text.
        labels: (n,) the supervised tokens. text: (n,) index within the batch, and count: (n,) supervised tokens, of the
            text that a position belongs to.
    """

    rows: tuple[int, ...]
    input_ids: Tensor
    attention_mask: Tensor
    positions: Tensor
    labels: Tensor
    text: Tensor
    count: Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(
            rows=self.rows,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            positions=self.positions.to(device),
            labels=self.labels.to(device),
            text=self.text.to(device),
            count=self.count.to(device),
        )


class Tokenizing:
    """Tokenises prompt and target together, so that leading spaces and merges come out as in running text.

    Args:
        tokenizer: a fast tokenizer (offsets are needed). limit: positions the model has, or None. vocabulary: tokens
            that the model has embeddings of, or None.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, limit: int | None, vocabulary: int | None = None) -> None:
        if not tokenizer.is_fast:
            raise UsageError(
                "the model's tokenizer gives no character offsets",
                remedy="A tokenizer.json beside the model is needed.",
            )
        self.tokenizer, self.limit, self.vocabulary = tokenizer, limit, vocabulary
        self.padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
        if vocabulary is not None and self.padding >= vocabulary:
            self.padding = 0  # it is masked wherever it stands

    def __call__(self, prompt: str, target: str) -> Tokens:
        """Tokens of `prompt target`.

        Raises:
            UsageError: longer than the model's positions, no token belongs to the target, or one is not the model's.
        """
        joint = prompt + ("" if prompt[-1:].isspace() or target[:1].isspace() else " ") + target
        encoded = self.tokenizer(joint, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
        ids, offsets, special = encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"]
        target_tokens = [
            i
            for i, ((_, stop), is_special) in enumerate(zip(offsets, special, strict=True))
            if stop > len(prompt) and not is_special
        ]
        if not target.strip() or not target_tokens or target_tokens[0] == 0:
            raise UsageError(f"the tokenizer leaves nothing to supervise in {joint!r:.100}")
        tokens = Tokens(tuple(ids[: target_tokens[-1] + 1]), target_tokens[0])
        if self.limit is not None and len(tokens.ids) - 1 > self.limit:
            raise UsageError(
                f"{len(tokens.ids)} tokens where the model has {self.limit} positions: {joint!r:.60}",
                remedy="Shorten the prompt or leave the fact out.",
            )
        if self.vocabulary is not None and max(tokens.ids) >= self.vocabulary:
            raise UsageError(
                f"token {max(tokens.ids)} where the model knows {self.vocabulary:,}: {joint!r:.60}",
                remedy="The tokenizer belongs to another model, or was given tokens that the model was not.",
            )
        return tokens

    def fits(self, prompt: str, target: str) -> Tokens | None:
        """The tokens, or None where the text cannot be supervised (too long for the model, say)."""
        try:
            return self(prompt, target)
        except UsageError:
            return None

    def batches(self, texts: Sequence[Tokens], batch_tokens: int) -> Iterator[Batch]:
        """Padded batches of similar length, at most `batch_tokens` padded tokens each (or one text)."""
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i].ids), i))
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop + 1 - start) * (len(texts[order[stop]].ids) - 1) <= batch_tokens:
                stop += 1
            yield self._pad([(row, texts[row]) for row in order[start:stop]])
            start = stop

    def _pad(self, texts: Sequence[tuple[int, Tokens]]) -> Batch:
        length = max(len(tokens.ids) - 1 for _, tokens in texts)
        input_ids = torch.full((len(texts), length), self.padding, dtype=torch.long)
        mask = torch.zeros(len(texts), length, dtype=torch.long)
        positions: list[int] = []
        labels: list[int] = []
        text: list[int] = []
        count: list[int] = []
        for i, (_, tokens) in enumerate(texts):
            inputs = len(tokens.ids) - 1
            input_ids[i, :inputs] = torch.tensor(tokens.ids[:-1])
            mask[i, :inputs] = 1
            positions += range(i * length + tokens.start - 1, i * length + inputs)
            labels += tokens.ids[tokens.start :]
            text += [i] * tokens.supervised
            count += [tokens.supervised] * tokens.supervised
        return Batch(
            rows=tuple(row for row, _ in texts),
            input_ids=input_ids,
            attention_mask=mask,
            positions=torch.tensor(positions),
            labels=torch.tensor(labels),
            text=torch.tensor(text),
            count=torch.tensor(count),
        )
