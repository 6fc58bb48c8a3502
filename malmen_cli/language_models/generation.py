"""Free answers: greedy with natural stopping, in batches of equally long prompts, which need no padding; or a class."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from malmen_cli.language_models.heads import Head
from malmen_cli.language_models.label_losses import likeliest
from malmen_cli.language_models.texts import Tokens
from malmen_cli.language_models.tokenizing import Seq2SeqTokenizing, Tokenizing


@dataclass(frozen=True, slots=True)
class Generated:
    """What a model says to a prompt.

    Attributes:
        text: without outer white space, up to where it ended. stopped: it ended by itself, with the model's
            end-of-text token or a line end; False where the cap cut it off. A class always stops.
        tokens: as they were said, without what ended them and is nothing else.
    """

    text: str
    stopped: bool
    tokens: tuple[int, ...] = field(default=(), compare=False)


class Generation:
    """The greedy continuations of one loaded causal model.

    A line end counts only once something other than white space has been said: some models begin with one.
    """

    def __init__(self, model: Any, tokenizing: Tokenizing, device: torch.device) -> None:
        self._model, self._tokenizing, self._device = model, tokenizing, device
        self._tokenizer: Any = tokenizing.tokenizer
        own = model.generation_config.eos_token_id
        ends = {self._tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
        self._ends = sorted(ends - {None})
        self._line_ends: dict[int, bool] = {}

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[str],
        max_new_tokens: int | Sequence[int],
        *,
        batch_tokens: int,
        progress: Callable[[int, int], None],
    ) -> list[Generated]:
        """See `LanguageModel.generate`."""
        caps = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        ids = [self._tokenizing.prompt_ids(prompt) for prompt in prompts]
        caps = [min(cap, self._room(x)) for cap, x in zip(caps, ids, strict=True)]
        found = [Generated("", False)] * len(prompts)
        done = 0
        for rows in _batches([len(x) for x in ids], caps, batch_tokens):
            for row, new in zip(rows, self._continue([ids[i] for i in rows], [caps[i] for i in rows]), strict=True):
                found[row] = self._cut(new[: caps[row]])
            done += len(rows)
            progress(done, len(prompts))
        return found

    def _continue(self, prompts: list[list[int]], caps: list[int]) -> list[list[int]]:
        """New tokens per prompt, with whatever comes after a row's end while others go on. All are equally long."""
        from transformers import StoppingCriteriaList

        inputs = {name: ids.to(self._device) for name, ids in self._inputs(prompts).items()}
        read = list(inputs.values())[-1].shape[1]
        limits = torch.tensor(caps, device=self._device)

        def ended(input_ids: Tensor, scores: object, **others: object) -> Tensor:
            newest = input_ids[:, -1].tolist()
            line_ended = [
                self._ends_line(token) and self._cut(row[read:].tolist()).stopped
                for token, row in zip(newest, input_ids, strict=True)
            ]
            return torch.tensor(line_ended, device=input_ids.device) | (limits <= input_ids.shape[1] - read)

        with _dense_states(self._model):
            out = self._model.generate(
                **inputs,
                attention_mask=torch.ones_like(inputs["input_ids"]),
                max_new_tokens=max(caps),
                do_sample=False,
                num_beams=1,
                eos_token_id=self._ends or None,
                pad_token_id=self._tokenizing.padding,
                stopping_criteria=StoppingCriteriaList([ended]),
            )
        new: list[list[int]] = out[:, read:].tolist()
        return new

    def _room(self, prompt: Sequence[int]) -> int:
        """New tokens that the model has positions for; the last one is never read, so that it needs none."""
        limit = self._tokenizing.limit
        return sys.maxsize if limit is None else limit + 1 - len(prompt)

    def _inputs(self, prompts: list[list[int]]) -> dict[str, Tensor]:
        """What `generate` starts from; the new tokens follow the last of these."""
        return {"input_ids": torch.tensor(prompts)}

    def _cut(self, new: list[int]) -> Generated:
        """The text of new tokens up to the first end among them."""
        for place, token in enumerate(new):
            if token in self._ends:
                return Generated(self._text(new[:place]).strip(), True, tuple(new[:place]))
            if self._ends_line(token):
                line, end, _ = self._text(new[: place + 1]).lstrip().partition("\n")
                if end:
                    own = self._text([token]).partition("\n")[0].strip()  # what the token says before its line end
                    return Generated(line.strip(), True, tuple(new[: place + bool(own)]))
        return Generated(self._text(new).strip(), False, tuple(new))

    def _ends_line(self, token: int) -> bool:
        if token not in self._line_ends:
            self._line_ends[token] = "\n" in self._text([token])
        return self._line_ends[token]

    def _text(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class Seq2SeqGeneration(Generation):
    """The greedy answers of an encoder-decoder: the prompt is read by the encoder, whatever its length."""

    def __init__(self, model: Any, tokenizing: Seq2SeqTokenizing, device: torch.device) -> None:
        super().__init__(model, tokenizing, device)
        self._prefix = tokenizing.decoder_prefix()

    def _room(self, prompt: Sequence[int]) -> int:
        limit = self._tokenizing.limit
        return 0 if limit is not None and len(prompt) > limit else super()._room(self._prefix)

    def _inputs(self, prompts: list[list[int]]) -> dict[str, Tensor]:
        return {"input_ids": torch.tensor(prompts), "decoder_input_ids": torch.tensor([self._prefix] * len(prompts))}


class Classifying:
    """The class that a classification model puts each prompt into, as its answer."""

    def __init__(self, head: Head, tokenizing: Tokenizing, device: torch.device) -> None:
        self._head, self._tokenizing, self._device = head, tokenizing, device

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[str],
        max_new_tokens: int | Sequence[int],
        *,
        batch_tokens: int,
        progress: Callable[[int, int], None],
    ) -> list[Generated]:
        """See `LanguageModel.generate`; a prompt that is too long for the model gets no answer."""
        limit = self._tokenizing.limit or sys.maxsize
        ids = [self._tokenizing.prompt_ids(prompt) for prompt in prompts]
        fitting = [row for row, read in enumerate(ids) if len(read) <= limit]
        found = [Generated("", False)] * len(prompts)
        done = len(prompts) - len(fitting)
        for batch in self._tokenizing.batches([Tokens(tuple(ids[row]), (0,)) for row in fitting], batch_tokens):
            best = likeliest(self._head, self._head.references(batch.to(self._device)))
            for row, label in zip(batch.rows, best, strict=True):
                found[fitting[row]] = Generated(self._tokenizing.text_of([label]), True, (label,))
            done += len(batch.rows)
            progress(done, len(prompts))
        return found


@contextmanager
def _dense_states(model: Any) -> Iterator[None]:
    """Within it the output embeddings see hidden states that lie side by side in memory.

    `generate` asks for logits at the last position of each prompt, which is a view with gaps. torch 2.13's bfloat16
    linear layer on a CPU then copies its weight, the widest of the model, once per prompt: for 32 prompts and 50,257
    words it takes 7 s and 2.5 GB instead of 0.03 s and nothing.
    """

    def close(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Not `contiguous`, which leaves the stride of one prompt as it is, and that is enough for the slow way.
        return (args[0].clone(memory_format=torch.contiguous_format), *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(close)
    try:
        yield
    finally:
        handle.remove()


def _batches(lengths: Sequence[int], caps: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Rows of equally long prompts, at most `batch_tokens` read and new tokens (or one row); none without room."""
    batch: list[int] = []
    largest = 0
    for row in sorted((i for i, cap in enumerate(caps) if cap > 0), key=lambda i: (lengths[i], caps[i], i)):
        largest = max(largest, lengths[row] + caps[row])
        if batch and (lengths[row] != lengths[batch[0]] or (len(batch) + 1) * largest > batch_tokens):
            yield batch
            batch, largest = [], lengths[row] + caps[row]
        batch.append(row)
    if batch:
        yield batch
