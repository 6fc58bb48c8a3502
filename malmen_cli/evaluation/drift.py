"""Perplexity drift: how much less likely running text has become to the edited model than it was to the base."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from malmen_cli.errors import NumericalFailure, UsageError
from malmen_cli.evaluation.bootstrap import Score, intervals, resampled_means

if TYPE_CHECKING:
    from malmen_cli.language_models.language_model import LanguageModel
    from malmen_cli.language_models.texts import Tokens

LONGEST = 1024
"""Tokens of a chunk at most, of a model with more positions."""

FEW = 10
"""Chunks below which an interval over them says little."""


@dataclass(frozen=True, slots=True)
class Drift:
    """Perplexity of running text, exp of the mean negative log-likelihood per token, with intervals over chunks.

    Attributes:
        source: the text file. tokens: predicted. chunks: the text was read in, each from its own start.
        ratio: the edited model's over the base's; 1 where nothing has changed.
    """

    source: str
    tokens: int
    chunks: int
    before: Score
    after: Score
    ratio: Score

    def as_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "tokens": self.tokens,
            "chunks": self.chunks,
            "perplexity": {"before": self.before.as_dict(), "after": self.after.as_dict()},
            "ratio": self.ratio.as_dict(),
        }


class RunningText:
    """A text in chunks as long as the model's positions allow, equal but for one token.

    Raises:
        UsageError: the model is not causal, or the text has fewer than two tokens.
    """

    def __init__(self, model: LanguageModel, text: str, source: str) -> None:
        require_causal(model.task)
        self.model, self.source = model, source
        self.chunks = chunked(model, text)
        if not self.chunks:
            raise UsageError(f"{source} holds too little text", remedy="give --drift a text of a page or more")

    def ask(
        self, *, batch_tokens: int | None = None, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[float]:
        """Of every chunk the sum of its tokens' negative log-likelihoods (nats), in the model as it stands."""
        from malmen_cli.evaluation.metrics import likelihoods

        found: list[float] = []
        most = min(batch_tokens or self.model.batch_tokens, LONGEST)
        # So many at a time that progress is seen.
        for start in range(0, len(self.chunks), 8):
            part = self.chunks[start : start + 8]
            longest = max(chunk.length for chunk in part)
            sums = likelihoods(self.model, part, batch_tokens=max(most, longest))
            found += [-mean * chunk.supervised for mean, chunk in zip(sums, part, strict=True)]
            progress(len(found), len(self.chunks))
        return found

    def drift(self, before: Sequence[float], after: Sequence[float]) -> Drift:
        """What two states of the model said of the text.

        Raises:
            NumericalFailure: a perplexity that is not finite.
        """
        import torch

        counts = torch.tensor([chunk.supervised for chunk in self.chunks], dtype=torch.float64)
        sums = torch.tensor([before, after], dtype=torch.float64).T
        means = resampled_means(sums, counts.unsqueeze(1).expand_as(sums))
        both = torch.cat([means, means[:, 1:] - means[:, :1]], dim=1).exp()
        tokens = sum(chunk.supervised for chunk in self.chunks)
        was, now, ratio = intervals(both)
        if not all(math.isfinite(x) for score in (was, now, ratio) for x in (score.value, score.low, score.high)):
            raise NumericalFailure(
                f"the perplexity of {self.source} is not finite", remedy="the model may be damaged, or not of text"
            )
        return Drift(self.source, tokens, len(self.chunks), was, now, ratio)


def require_causal(task: str) -> None:
    """Raises UsageError for the task of a model that does not continue running text."""
    if task != "causal":
        raise UsageError(
            f"perplexity of running text is of causal models, and this is a {task} model", remedy="leave out --drift"
        )


def chunked(model: LanguageModel, text: str) -> list[Tokens]:
    """The text's tokens in equal chunks, after what the tokenizer begins every text with; all but the first token of a
    chunk are predicted, that one too where something stands before it."""
    from malmen_cli.language_models.texts import Tokens

    tokenizer = model.tokenizing.tokenizer
    start = tokenizer("a", return_special_tokens_mask=True)
    prefix = tuple(start["input_ids"][: start["special_tokens_mask"].index(0)])
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    model.tokenizing.require_known(ids, text)
    room = min(model.tokenizing.limit or LONGEST, LONGEST) + 1 - len(prefix)
    count = math.ceil(len(ids) / room)
    chunks = []
    for i in range(count):
        own = tuple(ids[len(ids) * i // count : len(ids) * (i + 1) // count])
        labels = own if prefix else own[1:]
        if labels:
            chunks.append(Tokens((*prefix, *own)[:-1], labels))
    return chunks
