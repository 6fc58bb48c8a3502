"""One meta-training step: edit n facts in memory, measure, and give every parameter of the editor its gradient.

The two networks' graphs never coexist (arXiv 2311.04661, section 3.3): the hyper-network runs without a graph to give
D, the language model is differentiated with respect to the edited weights only, the solve is differentiated by hand,
and the hyper-network runs once more, chunk by chunk, to take dL/dD on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from malmen_cli.config import TrainingConfig
from malmen_cli.editing.editor import Editor
from malmen_cli.editing.normal_equation import Solution
from malmen_cli.errors import NumericalFailure
from malmen_cli.evaluation.metrics import token_accuracy
from malmen_cli.language_models.label_losses import Losses as LabelLosses
from malmen_cli.language_models.label_losses import cross_entropy, divergence, reference_grads
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.texts import Batch, Tokens
from malmen_cli.training.features import Features
from malmen_cli.training.rows import TrainingRow


@dataclass(frozen=True, slots=True)
class Losses:
    """Parts of one step's loss, each a mean per fact in saturated nats (recipe paper: sums of batch means in nats)."""

    equivalent: float
    edit: float
    locality: float

    @property
    def total(self) -> float:
        return self.equivalent + self.edit + self.locality


class MetaStep:
    """Everything one step needs, bound once.

    Args:
        model: at its base weights, to which every step returns it. rows: training rows, those of `features`.
    """

    def __init__(
        self,
        model: LanguageModel,
        editor: Editor,
        features: Features,
        rows: Sequence[TrainingRow],
        config: TrainingConfig,
    ) -> None:
        self.model, self.editor, self.features, self.rows, self.config = model, editor, features, rows, config
        self.base = model.weights()

    def edited_weights(self, texts: Sequence[int]) -> tuple[list[Tensor], list[Solution]]:
        """W0 + S per layer for these rows' facts, float32, and the solutions."""
        weights, solutions = [], []
        for layer, base in enumerate(self.base):
            keys, grads = self.features.rows(layer, texts)
            equation = self.editor.equation(layer, repeated=True)
            with torch.no_grad(), self.model.autocast():
                for u, g in self._chunks(keys, grads):
                    equation.update(*self.editor.rows(layer, u, g))
            solution = self.editor.solve(layer, equation)
            solutions.append(solution)
            weights.append(base.float() + solution.param_shift.to(base.device, torch.float32))
        return weights, solutions

    def __call__(self, texts: Sequence[int], seed: int) -> Losses:
        """Accumulate the gradient of these facts' loss into the editor's parameters.

        Args:
            texts: which rows. seed: chooses a rephrase and an unrelated prompt of facts that have several.

        Raises:
            NumericalFailure: a loss that is not finite.
        """
        choose = random.Random(seed)
        weights, solutions = self.edited_weights(texts)
        self.model.set_weights(weights)
        del weights
        try:
            with self.model.weight_gradients():
                losses = self._measure(texts, choose)
                param_grads = [self._unscaled(layer.weight_grad.to(self.model.device)) for layer in self.model.layers]
        finally:
            self.model.set_weights(self.base)
        if not all(map(_finite, (losses.equivalent, losses.edit, losses.locality))):
            raise NumericalFailure(
                "the training loss is not finite", remedy="Lower --learning-rate, or train in float32."
            )
        for layer, (solution, grad) in enumerate(zip(solutions, param_grads, strict=True)):
            self._back(layer, texts, solution, grad)
        return losses

    def _measure(self, texts: Sequence[int], choose: random.Random) -> Losses:
        """Run the edited model forward and backward; its edited layers hold the gradients afterwards."""
        config, rows = self.config, [self.rows[t] for t in texts]
        per_fact = 1 / len(texts) if config.reduction == "fact" else 1.0
        equivalent = self._cross_entropy([choose.choice(row.equivalent) for row in rows], per_fact)
        edit = self._cross_entropy([row.edit for row in rows], per_fact * config.edit) if config.edit else 0.0
        unrelated: list[Tokens] = []
        reference: list[tuple[int, int]] = []
        edited = {row.edit for row in rows}
        for text, row in zip(texts, rows, strict=True):
            if row.unrelated and config.locality:
                pick = choose.randrange(len(row.unrelated))
                if row.unrelated[pick] not in edited:  # it may be lent by another fact
                    unrelated.append(row.unrelated[pick])
                    reference.append((text, pick))
        locality = self._divergence(unrelated, reference, per_fact * config.locality)
        return Losses(equivalent, edit, locality)

    def _cross_entropy(self, texts: Sequence[Tokens], coefficient: float) -> float:
        return self._differentiated(texts, lambda batch: cross_entropy(batch.labels), coefficient)

    def _divergence(self, texts: Sequence[Tokens], reference: Sequence[tuple[int, int]], coefficient: float) -> float:
        """KL(p_W0 || p_W0+S) at the unrelated prompts' labels."""

        def from_the_base(batch: Batch) -> LabelLosses:
            base = self.features.reference([reference[row] for row in batch.rows])
            return divergence(self.model.head, base.to(self.model.device))

        return self._differentiated(texts, from_the_base, coefficient)

    def _differentiated(
        self, texts: Sequence[Tokens], losses_of: Callable[[Batch], LabelLosses], coefficient: float
    ) -> float:
        """The texts' loss, whose gradient the edited layers are given batch by batch.

        Losses per label enter saturated: each text's mean, summed, or (recipe paper) the batch's token mean.
        """
        total, config = 0.0, self.config
        for batch, references in self.model.passes(texts, config.batch_tokens, self.features.lower):
            found, grads = reference_grads(
                self.model.head,
                references,
                losses_of(batch),
                batch.count if config.reduction == "fact" else torch.full_like(batch.count, len(batch.labels)),
                coefficient=coefficient,
                saturation=config.saturation,
                scale=self.model.loss_scale,
            )
            references.backward(grads)
            total += found
        return total

    def token_accuracy(self, texts: Sequence[Tokens]) -> list[float]:
        """Per text the share of labels that the model, as it stands, would choose."""
        return token_accuracy(self.model, texts, batch_tokens=self.config.batch_tokens, kept=self.features.lower)

    def _unscaled(self, grad: Tensor) -> Tensor:
        """A copy; of float16 widened first, since what the scale has kept from vanishing would vanish now."""
        scale = self.model.loss_scale
        return grad.clone() if scale == 1 else grad.float() / scale

    def _back(self, layer: int, texts: Sequence[int], solution: Solution, param_grad: Tensor) -> None:
        keys, grads = self.features.rows(layer, texts)
        keys, grads = keys.to(self.model.device), grads.to(self.model.device)
        pulled = self.editor.pull_back(layer, solution, keys, param_grad)
        for start in range(0, len(keys), self.config.editor_rows):
            part = slice(start, start + self.config.editor_rows)
            with self.model.autocast():
                left, right = self.editor.rows(layer, keys[part], grads[part])
            pulled(part, left, right).backward()

    def _chunks(self, keys: Tensor, grads: Tensor) -> list[tuple[Tensor, Tensor]]:
        size, device = self.config.editor_rows, self.model.device
        return [(u.to(device), g.to(device)) for u, g in zip(keys.split(size), grads.split(size), strict=True)]


def _finite(x: float) -> bool:
    return x - x == 0
