"""ES, GS and LS: teacher-forced token accuracy, as in the paper (arXiv 2311.04661, section 4); likelihoods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from malmen_cli.language_models.label_losses import likeliest_and_nats
from malmen_cli.language_models.language_model import KeptStates, LanguageModel
from malmen_cli.language_models.texts import Tokens


def token_accuracy(
    model: LanguageModel, texts: Sequence[Tokens], *, batch_tokens: int | None = None, kept: KeptStates | None = None
) -> list[float]:
    """Per text the share of labels that the model would choose, the target's earlier tokens given; 0 to 1."""
    return agreement(model.predictions(texts, batch_tokens=batch_tokens, kept=kept), texts)


def agreement(predictions: Sequence[Sequence[int]], texts: Sequence[Tokens]) -> list[float]:
    """Per text the share of labels that were predicted; 0 to 1."""
    return [
        sum(p == t for p, t in zip(predicted, text.labels, strict=True)) / text.supervised
        for predicted, text in zip(predictions, texts, strict=True)
    ]


@torch.no_grad()
def asked(
    model: LanguageModel, texts: Sequence[Tokens], *, batch_tokens: int | None = None
) -> tuple[list[list[int]], list[float]]:
    """Of each text, in one pass: what the model would choose at each label, and the mean log-likelihood (nats)."""
    chosen: list[list[int]] = [[] for _ in texts]
    means = [0.0] * len(texts)
    for batch, references in model.passes(texts, batch_tokens):
        labels, losses = likeliest_and_nats(model.head, references, batch.labels)
        # Summed on the CPU: not every device has float64.
        shares = losses.cpu().double() / batch.count.cpu()
        sums = shares.new_zeros(len(batch.rows)).index_add_(0, batch.text.cpu(), shares)
        for row, loss in zip(batch.rows, sums.tolist(), strict=True):
            means[row] = -loss
        for i, token in zip(batch.text.tolist(), labels, strict=True):
            chosen[batch.rows[i]].append(token)
    return chosen, means


def likelihoods(model: LanguageModel, texts: Sequence[Tokens], *, batch_tokens: int | None = None) -> list[float]:
    """Per text the mean log-likelihood of its labels, each from those before it; nats."""
    return asked(model, texts, batch_tokens=batch_tokens)[1]


def mean(values: Sequence[float]) -> float | None:
    """The mean, or None of nothing."""
    return sum(values) / len(values) if values else None


@dataclass(frozen=True, slots=True)
class Scores:
    """Means over prompts, 0 to 1; None where there were none to ask.

    Attributes:
        edit_success: ES, over the edit prompts. generalization: GS, over rephrases. locality: LS, over unrelated
            prompts against their gold answers.
    """

    edit_success: float | None
    generalization: float | None
    locality: float | None

    def as_dict(self) -> dict[str, float | None]:
        return {"ES": self.edit_success, "GS": self.generalization, "LS": self.locality}

    @property
    def harmonic_mean(self) -> float:
        """Of those that are not None, each taken as at least 0.01, so that one zero does not hide the others."""
        values = [max(v, 0.01) for v in (self.edit_success, self.generalization, self.locality) if v is not None]
        return len(values) / sum(1 / v for v in values) if values else 0.0
