"""UltraEdit (Gu et al. 2025, arXiv 2505.14679, section 3): MALMEN's least squares without a hyper-network.

    [u^; g^] = ([u; g] - mean) / std,   d = -eta |u^|^2 g^,   S = (U^T U + lambda I)^-1 U^T D

The published method updates mean and std with every batch of edits. Here they are calibrated once and then frozen, so
that a fact's rows depend on that fact alone, and its edit can be taken back exactly. Published: eta 1e-6, lambda 1,
moments shared by all layers of one shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from malmen_cli.editing.checked_tensors import Expected, check_tensors
from malmen_cli.editing.editor import LayerShape
from malmen_cli.editing.normal_equation import NormalEquation, PreservedKeys, Solution
from malmen_cli.editing.normalizer import Normalizer
from malmen_cli.errors import UsageError
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.texts import Tokens
from malmen_cli.methods.settings import UltraEditSettings

FEWEST = 2
"""Rows without which no dimension varies, so that every d is 0."""

SAMPLE = 512
"""Rows per layer that step sizes are measured on, at most: every k-th of all, since texts come by their length."""


class UltraEdit:
    """An editor of the `per_fact.RowEditor` protocol, made by `calibrate`, or from what `tensors` gave.

    Args:
        settings: ridge, and how the step sizes are found. layers: the edited layers, in the order they run.
    """

    everywhere = False

    def __init__(self, settings: UltraEditSettings, layers: Sequence[LayerShape]) -> None:
        self.settings, self.layers = settings, tuple(layers)
        self.normalizers = [Normalizer(layer.d_in + layer.d_out) for layer in self.layers]
        self.step_sizes = torch.zeros(len(self.layers))  # eta, float32
        self.preserved: list[PreservedKeys | None] = [None] * len(self.layers)
        self._scales: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    # Rows and solve ------------------------------------------------------------------------------------------------

    def key_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Keys are kept as they are captured."""
        return dtype

    def rows(self, layer: int, keys: Tensor, value_grads: Tensor) -> tuple[Tensor, Tensor]:
        """u (n, d_in) and d = -eta |u^|^2 g^ (n, d_out), float32."""
        return keys, -self.step_sizes[layer].to(keys.device) * self._directions(layer, keys, value_grads)

    def _directions(self, layer: int, keys: Tensor, value_grads: Tensor) -> Tensor:
        """|u^|^2 g^, float32."""
        place = (layer, keys.device)
        if place not in self._scales:
            mean, inverse_std = self.normalizers[layer].scale()
            self._scales[place] = (mean.to(keys.device), inverse_std.to(keys.device))
        mean, inverse_std = self._scales[place]
        normalized = (torch.cat([keys.float(), value_grads.float()], dim=1) - mean) * inverse_std
        key, grad = normalized.split([self.layers[layer].d_in, self.layers[layer].d_out], dim=1)
        return key.square().sum(1, keepdim=True) * grad

    def equation(self, layer: int) -> NormalEquation:
        return NormalEquation(self.layers[layer].d_in, self.layers[layer].d_out)

    def solve(self, layer: int, equation: NormalEquation) -> Solution:
        return equation.solve(ridge=self.settings.ridge)

    def step_size(self, layer: int) -> Tensor:
        """eta of the layer."""
        return self.step_sizes[layer]

    def forget(self, layer: int) -> None:
        """Nothing is kept of a solve."""

    # Calibration ---------------------------------------------------------------------------------------------------

    def calibrate(
        self,
        model: LanguageModel,
        texts: Sequence[Tokens],
        *,
        batch_tokens: int | None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Take mean and std, and step sizes where the settings name none, from the rows of some texts.

        A step size makes the mean |d| of these rows a set share of their mean |u W0| at its layer.

        Args:
            model: at its base weights. texts: edit prompts with their targets.

        Raises:
            UsageError: too few rows, or rows that do not vary.
        """
        samples: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in self.layers]
        counts = [sum(text.rows(layer.stack, False) for text in texts) for layer in model.layers]
        strides = [-(-count // SAMPLE) for count in counts]
        done = 0
        for batch, rows in model.capture(texts, batch_tokens=batch_tokens):
            for layer, (keys, grads) in enumerate(zip(rows.keys, rows.value_grads, strict=True)):
                u, g = samples[layer]
                first = -self.normalizers[layer].count % strides[layer]
                # Copies: a view would keep all of its batch.
                u.append(keys[first :: strides[layer]].to(torch.float32, copy=True))
                g.append(grads[first :: strides[layer]].to(torch.float32, copy=True))
                self.normalizers[layer].update(torch.cat([keys.to(grads.dtype), grads], dim=1))
            done += len(batch.rows)
            progress(done, len(texts))
        if any(normalizer.count < FEWEST for normalizer in self.normalizers):
            raise self._too_few()
        if self.settings.normalise == "shape":
            self.normalizers = _shared(self.layers, self.normalizers)
        self._scales.clear()
        for layer, (u, g) in enumerate(samples):
            keys = torch.cat(u)
            size = float(self._directions(layer, keys, torch.cat(g)).norm(dim=1).mean())
            if not size > 0:
                raise self._too_few()
            if self.settings.step_size is not None:
                self.step_sizes[layer] = self.settings.step_size
            else:
                weight = model.layers[layer].weight.to(keys.device, torch.float32)
                self.step_sizes[layer] = self.settings.change * float((keys @ weight).norm(dim=1).mean()) / size

    def _too_few(self) -> UsageError:
        return UsageError(
            "ultraedit's normaliser cannot be calibrated on facts so few or so alike",
            remedy="Calibrate it on more: malmen train FILE --method ultraedit, with some hundred facts.",
        )

    # Files ---------------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Moments and step sizes, as named CPU tensors."""
        named = {"step_size": self.step_sizes.clone()}
        for i, normalizer in enumerate(self.normalizers):
            named[f"normalizer.{i}.mean"] = normalizer.mean
            named[f"normalizer.{i}.variance"] = normalizer.variance
            named[f"normalizer.{i}.count"] = torch.tensor(normalizer.count)
        return named

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take in what `tensors` gave.

        Raises:
            UnsafeFile: naming the first tensor that does not fit.
        """
        expected: dict[str, Expected] = {"step_size": ((len(self.layers),), {torch.float32})}
        for i, layer in enumerate(self.layers):
            for name in ("mean", "variance"):
                expected[f"normalizer.{i}.{name}"] = ((layer.d_in + layer.d_out,), {torch.float64})
            expected[f"normalizer.{i}.count"] = ((), {torch.int64})
        check_tensors(tensors, expected)
        self.step_sizes = tensors["step_size"]
        for i, normalizer in enumerate(self.normalizers):
            normalizer.mean, normalizer.variance = tensors[f"normalizer.{i}.mean"], tensors[f"normalizer.{i}.variance"]
            normalizer.count = int(tensors[f"normalizer.{i}.count"])
        self._scales.clear()


def _shared(layers: Sequence[LayerShape], normalizers: Sequence[Normalizer]) -> list[Normalizer]:
    """The moments merged over all layers of one shape."""
    merged: dict[tuple[int, int], Normalizer] = {}
    for layer, moments in zip(layers, normalizers, strict=True):
        merged.setdefault((layer.d_in, layer.d_out), Normalizer(layer.d_in + layer.d_out)).merge(moments)
    return [merged[layer.d_in, layer.d_out] for layer in layers]
