"""FT: fine-tuning of the edited layers on all facts, in mini-batches, epoch after epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from malmen_cli.errors import NumericalFailure
from malmen_cli.facts import Fact
from malmen_cli.language_models.heads import wide
from malmen_cli.language_models.label_losses import cross_entropy, reference_grads
from malmen_cli.language_models.language_model import KeptStates, LanguageModel
from malmen_cli.language_models.lower_states import LowerStates, starts_of
from malmen_cli.language_models.texts import Tokens
from malmen_cli.methods.set_method import Progress, SetMethod, silent
from malmen_cli.methods.settings import MiniBatchSettings

KEPT_STATES = 1 << 30
"""Bytes of hidden states below the edited layers that are kept in memory, so that each text is run there once."""


class FineTuning(SetMethod):
    """Adam with decoupled weight decay on the edit prompts of all facts; nothing says what must not change.

    A 16-bit model runs in its own dtype, and what is trained is a float32 copy of its edited weights: steps too small
    for 16 bits add up there.
    """

    settings: MiniBatchSettings

    def shifts(self, model: LanguageModel, facts: Sequence[Fact], *, progress: Progress = silent) -> list[Tensor]:
        """See `SetMethod.shifts`."""
        texts = list(model.tokenizing.all_of((fact.prompt, fact.target) for fact in facts))
        base = model.weights()
        try:
            tuned = fine_tune(model, texts, self.settings, progress=progress)
        finally:
            model.set_weights(base)
        return [(after - before).float() for after, before in zip(tuned, base, strict=True)]


def fine_tune(
    model: LanguageModel, texts: Sequence[Tokens], settings: MiniBatchSettings, *, progress: Progress = silent
) -> list[Tensor]:
    """Weights (d_in, d_out) per edited layer after training on the texts, float32 or wider. The model keeps them too.

    A step's loss is the mean over its texts of each one's mean cross-entropy.

    Raises:
        NumericalFailure: a loss or a weight is not finite.
    """
    weights = [nn.Parameter(wide(weight)) for weight in model.weights()]
    rates = [settings.learning_rate or settings.relative_rate * _root_mean_square(weight) for weight in weights]
    groups = [{"params": [weight], "lr": rate} for weight, rate in zip(weights, rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, foreach=False, fused=False)
    generator = torch.Generator().manual_seed(settings.seed)
    kept = LowerStates(model, starts_of(model, texts, KEPT_STATES))  # no step changes them
    for _ in kept.fill(settings.batch_tokens, len(texts)):
        pass
    for epoch in range(settings.epochs if texts else 0):
        order = torch.randperm(len(texts), generator=generator).tolist()
        total = 0.0
        for start in range(0, len(order), settings.batch_facts):
            chosen = [texts[i] for i in order[start : start + settings.batch_facts]]
            loss, grads = loss_and_gradients(model, chosen, settings.batch_tokens, kept)
            total += loss * len(chosen)
            if loss >= settings.small_loss:
                for weight, grad in zip(weights, grads, strict=True):
                    weight.grad = grad
                optimizer.step()
                model.set_weights(weights)
            progress("fine-tuning", epoch * len(texts) + start + len(chosen), settings.epochs * len(texts))
        if not (math.isfinite(total) and all(bool(torch.isfinite(weight).all()) for weight in weights)):
            rate = "learning_rate" if settings.learning_rate else "relative_rate"
            raise NumericalFailure(
                f"fine-tuning diverged in epoch {epoch + 1}",
                remedy=f"Set a smaller {rate} in the method's settings.",
            )
        if total / len(texts) < settings.small_loss:
            break
    return [weight.detach() for weight in weights]


def loss_and_gradients(
    model: LanguageModel, texts: Sequence[Tokens], batch_tokens: int, kept: KeptStates | None = None
) -> tuple[float, list[Tensor]]:
    """The mean over texts of each one's mean cross-entropy, in nats, and its gradients (d_in, d_out) in float32.

    Args:
        batch_tokens: padded tokens that the model runs at once; it decides about memory, not about the result.
        kept: what the first edited block reads of the texts.
    """
    total = 0.0
    grads = [torch.zeros_like(wide(layer.weight)) for layer in model.layers]
    with torch.enable_grad(), model.weight_gradients():
        for batch, references in model.passes(texts, batch_tokens, kept):
            loss, slopes = reference_grads(
                model.head,
                references,
                cross_entropy(batch.labels),
                batch.count,
                coefficient=1 / len(texts),
                scale=model.loss_scale,
            )
            references.backward(slopes)
            total += loss
            for layer, grad in zip(model.layers, grads, strict=True):
                # Parts of a batch are summed in float32: in the model's dtype the small ones would vanish.
                grad.add_(layer.weight_grad, alpha=1 / model.loss_scale)
                layer.module.weight.grad = None
    return total, grads


def _root_mean_square(weight: Tensor) -> float:
    return float(weight.detach().square().mean().sqrt())
