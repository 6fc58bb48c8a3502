"""From a batch to logits at its labels' positions, by way of references: one class per kind of output head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from malmen_cli.errors import UnsupportedModel
from malmen_cli.language_models.last_mlp import narrowed
from malmen_cli.language_models.texts import Batch


class Head(ABC):
    """The end of one loaded model.

    A reference is what a head keeps of a batch so that the logits can be had again without the model: final hidden
    states of a language model, which are narrower than its vocabulary, and a classifier's logits as they are.

    Attributes:
        width: numbers per reference. dtype: of references.
    """

    width: int
    dtype: torch.dtype

    @abstractmethod
    def references(self, batch: Batch) -> Tensor:
        """References (n, width) of the batch's labels, by a pass through the model."""

    @abstractmethod
    def logits_of(self, references: Tensor) -> Tensor:
        """Logits (n, classes) of references (n, width), as the model's own forward gives them."""

    @abstractmethod
    def forward(self, batch: Batch, stretch: float = 1.0) -> tuple[Tensor, Tensor]:
        """Logits (n, classes) by the model's own forward, to which `logits_of` is held, and references (n, width).

        Args:
            stretch: what references are multiplied by, before logits are made of them.
        """


class LanguageHead(Head):
    """Of a causal or sequence-to-sequence model: logits over the vocabulary.

    It is by far the widest layer of many a model, so it sees the labels' positions only, and so does the MLP before it.

    Args:
        mlp: of the last block, where it can be run at some positions only.

    Raises:
        UnsupportedModel: the model has no output embeddings.
    """

    def __init__(self, model: Any, mlp: nn.Module | None = None) -> None:
        self._model, self._mlp = model, mlp
        self.module: nn.Module = model.get_output_embeddings()
        if self.module is None:
            raise UnsupportedModel("the model has no language-model head", remedy="Use a checkpoint that has one.")
        weight: Any = self.module.weight
        self.width, self.dtype = weight.shape[1], weight.dtype

    def references(self, batch: Batch) -> Tensor:
        return self._pass(batch, of_all=False)[1]

    def forward(self, batch: Batch, stretch: float = 1.0) -> tuple[Tensor, Tensor]:
        return self._pass(batch, stretch=stretch)

    def _pass(self, batch: Batch, *, of_all: bool = True, stretch: float = 1.0) -> tuple[Tensor, Tensor]:
        """All references, and logits of all labels or of none."""
        hidden: list[Tensor] = []

        def gather(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            chosen = args[0].reshape(-1, args[0].shape[-1])[batch.positions.to(args[0].device)][None]
            chosen = chosen if stretch == 1 else chosen * stretch
            hidden.append(chosen[0])
            return (chosen if of_all else chosen[:, :0], *args[1:])

        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
        if batch.decoder_input_ids is not None:
            inputs["decoder_input_ids"] = batch.decoder_input_ids
        handle = self.module.register_forward_pre_hook(gather)
        try:
            with nullcontext() if self._mlp is None else narrowed(self._mlp, batch.positions):
                out = self._model(**inputs)
        finally:
            handle.remove()
        # The head of a model on several devices may be elsewhere.
        return out.logits[0].to(batch.labels.device), hidden[0].to(batch.labels.device)

    def logits_of(self, references: Tensor) -> Tensor:
        weight: Any = self.module.weight
        logits: Tensor = self.module(references.to(weight.device)).to(references.device)
        config = self._model.config.get_text_config()
        # What models do to their logits after the head: BART adds, Cohere multiplies, Granite divides, Gemma caps.
        bias = getattr(self._model, "final_logits_bias", None)
        if bias is not None:
            logits = logits + bias.to(logits.device)
        scale = (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
        if scale != 1:
            logits = logits * scale
        cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
        # Some models cap in their own dtype, others in float32, which bfloat16 is a rounding of.
        return logits if cap is None else torch.tanh(wide(logits) / cap) * cap


class ClassHead(Head):
    """Of a classification model: one logit per class.

    A single logit z is that of the second of two classes, so that (0, z) are the logits of both: their cross-entropy is
    the binary cross-entropy of z, their KL divergence that of Bernoulli distributions, and the likelier class is the
    sign of z. Nothing outside needs to know.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.width, self.dtype = model.config.num_labels, model.dtype

    def references(self, batch: Batch) -> Tensor:
        references: Tensor = self._model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        return references

    def forward(self, batch: Batch, stretch: float = 1.0) -> tuple[Tensor, Tensor]:
        references = self.references(batch) * stretch
        return self.logits_of(references), references

    def logits_of(self, references: Tensor) -> Tensor:
        if self.width > 1:
            return references
        return torch.cat([torch.zeros_like(references), references], dim=1)


def wide(logits: Tensor) -> Tensor:
    """Logits in at least float32, the dtype that losses are taken in."""
    return logits if logits.dtype == torch.float64 else logits.float()
