"""The editor: hyper-networks, normaliser, preserved keys and solve parameters, bound to a list of edited layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from malmen_cli.editing.checked_tensors import Expected, check_tensors
from malmen_cli.editing.hypernetwork import HyperNetwork
from malmen_cli.editing.normal_equation import Form, NormalEquation, PreservedKeys, Solution
from malmen_cli.editing.normalizer import Normalizer
from malmen_cli.editing.shapes import Float, Tensor

REFERENCE_ROWS = 32
"""alpha = exp(log_strength) * (n / 32)^power: stated at 32 rows, so that strength and power learn independently."""

ROWS_AT_ONCE = 1024
"""Rows that an editor is given at a time where facts are applied; how many in training is a setting."""


@dataclass(frozen=True)
class LayerShape:
    """One edited layer: the module's path in the model, and its weight's shape with rows acting on the right."""

    name: str
    d_in: int
    d_out: int


class Editor(nn.Module):
    """Per layer l: `d_i = -eta_l (u_i . u~_i) g~_i` (MALMEN, arXiv 2311.04661, section 3), then the normal equation.

    A fact's value differences depend on its own rows and the frozen editor alone, never on the facts beside it.

    Args:
        layers: the edited layers in the order they run. rank, blocks: of the hyper-networks, one per layer shape.
        step_size: learn log eta, or eta itself as the paper does. seed: of the hyper-networks' start.
    """

    everywhere = False  # rows are captured where `families.CAPTURED` says
    preserves = True  # it has a use for preserved keys

    def __init__(
        self,
        layers: Sequence[LayerShape],
        *,
        rank: int,
        blocks: int,
        step_size: Literal["log", "linear"] = "log",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.step_size_kind = step_size
        shapes = [(layer.d_in, layer.d_out) for layer in self.layers]
        self._network = [f"{d_in}x{d_out}" for d_in, d_out in shapes]
        self._place = [shapes[:i].count(shape) for i, shape in enumerate(shapes)]
        generator = torch.Generator().manual_seed(seed)
        self.networks = nn.ModuleDict(
            {
                f"{d_in}x{d_out}": HyperNetwork(
                    d_in, d_out, layers=shapes.count((d_in, d_out)), rank=rank, blocks=blocks, generator=generator
                )
                for d_in, d_out in dict.fromkeys(shapes)
            }
        )
        count = len(shapes)
        self.raw_step_size = nn.Parameter(torch.zeros(count))
        self.log_ridge = nn.Parameter(torch.zeros(count))
        self.log_strength = nn.Parameter(torch.zeros(count))
        self.strength_power = nn.Parameter(torch.full((count,), 0.75))
        self.normalizers = [Normalizer(d_in + d_out) for d_in, d_out in shapes]
        self.preserved: list[PreservedKeys | None] = [None] * count
        self._scales: list[tuple[Tensor, Tensor]] | None = None

    def scalars(self) -> list[nn.Parameter]:
        """The per-layer parameters, which have a learning rate of their own."""
        return [self.raw_step_size, self.log_ridge, self.log_strength, self.strength_power]

    def step_size(self, layer: int) -> Tensor:
        """eta of the layer, a scalar tensor with its graph."""
        raw = self.raw_step_size[layer]
        return raw.exp() if self.step_size_kind == "log" else raw

    def ridge(self, layer: int) -> float:
        """lambda of the layer."""
        return _exp(self.log_ridge[layer].item())

    def preserved_strength(self, layer: int, rows: int) -> float:
        """alpha of the layer for a solve over `rows` rows; 0 without preserved keys."""
        if self.preserved[layer] is None:
            return 0.0
        log_rows = math.log(rows / REFERENCE_ROWS)
        return _exp(self.log_strength[layer].item() + self.strength_power[layer].item() * log_rows)

    def freeze_normalizers(self) -> None:
        """Fix the normaliser's mean and scale; call after its last update and before `value_diffs`."""
        device = self.log_ridge.device
        self._scales = [tuple(x.to(device) for x in n.scale()) for n in self.normalizers]  # type: ignore[misc]

    def normalized(
        self, layer: int, keys: Float[Tensor, "n d_in"], value_grads: Float[Tensor, "n d_out"]
    ) -> Float[Tensor, "n width"]:
        """z = ([u; g] - mean) / std, float32; dimensions that never varied give 0."""
        if self._scales is None:
            self.freeze_normalizers()
        assert self._scales is not None
        mean, inverse_std = self._scales[layer]
        return (torch.cat([keys.float(), value_grads.float()], dim=1) - mean) * inverse_std

    def pseudo(
        self, layer: int, keys: Float[Tensor, "n d_in"], value_grads: Float[Tensor, "n d_out"]
    ) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]:
        """Pseudo keys u~ and pseudo value gradients g~ of normalised rows."""
        network = self.networks[self._network[layer]]
        found: tuple[Tensor, Tensor] = network(self.normalized(layer, keys, value_grads), self._place[layer])
        return found

    def value_diffs(
        self, layer: int, keys: Float[Tensor, "n d_in"], value_grads: Float[Tensor, "n d_out"]
    ) -> Float[Tensor, "n d_out"]:
        """d_i = -eta_l (u_i . u~_i) g~_i, float32."""
        pseudo_keys, pseudo_value_grads = self.pseudo(layer, keys, value_grads)
        inner = (keys.float() * pseudo_keys).sum(1, keepdim=True)
        return -self.step_size(layer) * inner * pseudo_value_grads

    def key_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """What the left sides of rows are kept in: keys as they are captured, in the model's dtype."""
        return dtype

    def rows(
        self, layer: int, keys: Float[Tensor, "n d_in"], value_grads: Float[Tensor, "n d_out"]
    ) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "n d_out"]]:
        """Both sides of the rows that a solve takes in: u_i and d_i."""
        return keys, self.value_diffs(layer, keys, value_grads)

    def equation(self, layer: int, form: Form | None = None, *, repeated: bool = False) -> NormalEquation:
        """An empty normal equation of the layer, to be fed rows; `repeated` where many will be solved, as in training.

        The first repeated one pays for the eigenvectors of the layer's preserved keys.
        """
        shape = self.layers[layer]
        return NormalEquation(shape.d_in, shape.d_out, preserved=self.preserved[layer], form=form, repeated=repeated)

    def solve(self, layer: int, equation: NormalEquation) -> Solution:
        """Solve with this editor's ridge and preserved strength for the equation's number of rows."""
        return equation.solve(
            ridge=self.ridge(layer),
            preserved_strength=self.preserved_strength(layer, equation.n) if equation.n else 0.0,
        )

    def forget(self, layer: int) -> None:
        """Let go of what a solve has left behind with the layer's preserved keys; for those who solve it but once."""
        if (preserved := self.preserved[layer]) is not None:
            preserved.forget()

    def pull_back(
        self, layer: int, solution: Solution, keys: Float[Tensor, "n d_in"], param_grads: Float[Tensor, "d_in d_out"]
    ) -> Callable[[slice, Tensor, Tensor], Tensor]:
        """Back from G = dL/dS to the rows, and to ridge and preserved strength, whose gradients are accumulated here.

        Returns:
            A function of some rows (which, and both their sides) to a scalar with the rows' derivatives of L.
        """
        found = solution.gradients(keys, param_grads)
        self.accumulate_solve_gradients(layer, len(keys), found.log_ridge, found.log_preserved_strength)
        targets = found.value_diffs.to(keys.device, torch.float32)
        return lambda part, left, right: (right * targets[part]).sum()

    def accumulate_solve_gradients(self, layer: int, rows: int, log_ridge: float, log_strength: float) -> None:
        """Add dL/d(log lambda) and dL/d(log alpha) of one solve to the gradients of the layer's parameters."""
        for parameter, grad in (
            (self.log_ridge, log_ridge),
            (self.log_strength, log_strength),
            (self.strength_power, log_strength * math.log(rows / REFERENCE_ROWS)),
        ):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad[layer] += grad

    def tensors(self) -> dict[str, Tensor]:
        """Everything that makes this editor, as named CPU tensors."""
        named = {name: p.detach().cpu().contiguous() for name, p in self.named_parameters()}
        for i, normalizer in enumerate(self.normalizers):
            named[f"normalizer.{i}.mean"] = normalizer.mean
            named[f"normalizer.{i}.variance"] = normalizer.variance
            named[f"normalizer.{i}.count"] = torch.tensor(normalizer.count)
        for i, preserved in enumerate(self.preserved):
            if preserved is not None:
                named[f"preserved.{i}.keys"] = preserved.keys.cpu().contiguous()
                named[f"preserved.{i}.count"] = torch.tensor(preserved.count)
        return named

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take in what `tensors` gave, after checking every name, shape, dtype and that all are finite.

        Raises:
            UnsafeFile: naming the first tensor that does not fit.
        """
        expected = dict(self._expected_tensors())
        optional = {
            f"preserved.{i}.{part}"
            for i in range(len(self.layers))
            if tensors.keys().isdisjoint({f"preserved.{i}.keys", f"preserved.{i}.count"})
            for part in ("keys", "count")
        }
        check_tensors(tensors, expected, optional)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(tensors[name])
        for i, normalizer in enumerate(self.normalizers):
            normalizer.mean, normalizer.variance = tensors[f"normalizer.{i}.mean"], tensors[f"normalizer.{i}.variance"]
            normalizer.count = int(tensors[f"normalizer.{i}.count"])
            keys = tensors.get(f"preserved.{i}.keys")
            self.preserved[i] = None if keys is None else PreservedKeys(keys, int(tensors[f"preserved.{i}.count"]))
        self.freeze_normalizers()

    def _expected_tensors(self) -> Iterator[tuple[str, Expected]]:
        for name, parameter in self.named_parameters():
            yield name, (tuple(parameter.shape), {torch.float32})
        for i, layer in enumerate(self.layers):
            width = layer.d_in + layer.d_out
            yield f"normalizer.{i}.mean", ((width,), {torch.float64})
            yield f"normalizer.{i}.variance", ((width,), {torch.float64})
            yield f"normalizer.{i}.count", ((), {torch.int64})
            yield f"preserved.{i}.keys", ((None, layer.d_in), {torch.float32, torch.bfloat16, torch.float16})
            yield f"preserved.{i}.count", ((), {torch.int64})


def _exp(x: float) -> float:
    """e^x, infinite where that is out of range: the solve refuses it in words, where math.exp raises OverflowError."""
    return math.exp(x) if x < 709 else math.inf
