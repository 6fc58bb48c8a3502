"""The official MALMEN loop in words of our own: the same arithmetic in the same order, to be measured beside malmen.

What ChenmienTan/malmen does per training step (arXiv 2311.04661, algorithm 1, as its code runs it) and malmen does not:

- logits at every position of every batch, and a key-value cache that nobody reads;
- weight gradients of the edited layers in the pass that captures keys and value gradients;
- one pair of files per batch and layer, written once and read back twice;
- the gram matrix twice, a general (LU) solve twice, both float32, and no form for few rows;
- shifts added to the weights and taken off again, once for all equivalents and once per batch of unrelated prompts;
- the unrelated prompts' reference logits anew in every step, and nothing kept from one epoch to the next.

Left out in its favour: building tokens inside the loop, and (unless `unused_loss`) the loss that the model computes by
itself because it is handed the labels, which nobody uses. `tests/training/test_official_step.py` holds this file to
malmen's own mathematics. Covered: causal models with nn.Linear or Conv1D layers. Not covered: encoders, classifiers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div
from torch.nn.utils.rnn import pad_sequence

from malmen_cli.language_models.texts import Tokens

IGNORED = -100
"""The label of positions that are not supervised."""

Batch = dict[str, Tensor]
"""input_ids, attention_mask and labels, each (b, t)."""


@dataclass(frozen=True)
class Settings:
    """The settings of its configuration file."""

    rank: int = 1920
    blocks: int = 2
    step_size: float = 1e-6  # eta at the start
    learning_rate: float = 1e-5  # Adam
    locality: float = 1.0  # coefficient of the KL divergence
    clip: float = 1.0  # gradient norm
    batch: int = 32  # texts per batch of the language model
    editor_rows: int = 1024  # rows per hyper-network chunk
    unused_loss: bool = False  # hand the labels to the model too, as the official code does


@dataclass
class Losses:
    """Of the batches of one step, each a mean over its labels, nats."""

    equivalent: list[float] = field(default_factory=list)
    locality: list[float] = field(default_factory=list)


class RunningMoments(nn.Module):
    """Mean and standard deviation of rows, float32; a batch's unbiased variance counts as often as it has rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.count = 0
        for name in ("mean", "sum_of_variances", "std"):
            self.register_buffer(name, torch.zeros(width))

    def update(self, rows: Tensor) -> None:
        size, total = len(rows), self.count + len(rows)
        gap = rows.mean(0) - self.mean
        self.mean = self.mean + size * gap / total
        self.sum_of_variances = self.sum_of_variances + size * rows.var(0) + self.count * size * gap.square() / total
        self.std = (self.sum_of_variances / (total - 1 + torch.finfo(rows.dtype).eps)).sqrt()
        self.count = total

    def forward(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) / (self.std + torch.finfo(rows.dtype).eps)


class LowRankBlock(nn.Module):
    """x <- x + s_l * max(x A B + b, 0) + t_l; looked up by a tensor that holds the layer's number."""

    def __init__(self, width: int, rank: int, layers: int) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(torch.randn(width, rank)), nn.Parameter(torch.zeros(rank, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.scale, self.shift = (
            nn.Embedding.from_pretrained(torch.full((layers, width), x), freeze=False) for x in (1.0, 0.0)
        )

    def forward(self, x: Tensor, layer: Tensor) -> Tensor:
        hidden = (x @ self.A @ self.B + self.bias).clamp(0)
        return self.scale(layer) * hidden + self.shift(layer) + x


class OfficialNetwork(nn.Module):
    """The hyper-network of all edited layers of one shape, with their shared moments, step sizes and log ridges."""

    def __init__(self, d_in: int, d_out: int, layers: int, settings: Settings) -> None:
        super().__init__()
        self.d_in, self.d_out = d_in, d_out
        self.moments = RunningMoments(d_in + d_out)
        self.blocks = nn.ModuleList(LowRankBlock(d_in + d_out, settings.rank, layers) for _ in range(settings.blocks))
        self.step_size = nn.Embedding.from_pretrained(torch.full((layers, 1), settings.step_size), freeze=False)
        self.log_ridge = nn.Embedding.from_pretrained(torch.zeros(layers, 1), freeze=False)

    def value_diffs(self, keys: Tensor, value_grads: Tensor, layer: Tensor) -> Tensor:
        """d = -eta (u . u~) g~."""
        hidden = self.moments(torch.cat((keys, value_grads), -1))
        for block in self.blocks:
            hidden = block(hidden, layer)
        pseudo_keys, pseudo_value_grads = hidden.split([self.d_in, self.d_out], -1)
        coefficients = -self.step_size(layer) * (keys * pseudo_keys).sum(-1).unsqueeze(-1)
        return coefficients * pseudo_value_grads


class OfficialLoop:
    """The official editor around a transformers model, which it freezes but for the edited weights.

    Args:
        model: a causal language model. layers: module paths, in the order they run.
        cache: a folder for the rows of one step; what it holds is overwritten.
    """

    def __init__(self, model: Any, layers: Sequence[str], cache: Path, settings: Settings | None = None) -> None:
        self.model, self.cache, self.settings = model, cache, settings or Settings()
        self.device = next(model.parameters()).device
        self.modules: list[nn.Module] = [model.get_submodule(name) for name in layers]
        model.requires_grad_(False)
        for module in self.modules:
            module.weight.requires_grad_(True)
        self.shapes = [_shape(module) for module in self.modules]
        self.places = [
            torch.tensor([self.shapes[:i].count(shape)], device=self.device) for i, shape in enumerate(self.shapes)
        ]
        self.networks = nn.ModuleDict(
            {str(s): OfficialNetwork(*s, self.shapes.count(s), self.settings) for s in dict.fromkeys(self.shapes)}
        ).to(self.device)
        self.optimizer = torch.optim.Adam(self.networks.parameters(), self.settings.learning_rate)
        self._batches = 0  # whose rows lie in the cache

    # What a user of the official code does ------------------------------------------------------------------------

    def train_step(self, edits: Sequence[Tokens], equivalents: Sequence[Tokens], unrelated: Sequence[Tokens]) -> Losses:
        """One step over as many facts as there are edits."""
        losses = self.gradients(edits, equivalents, unrelated)
        nn.utils.clip_grad_norm_(self.networks.parameters(), self.settings.clip)
        self.optimizer.step()
        return losses

    def edit(self, edits: Sequence[Tokens]) -> list[Tensor]:
        """Edit the model: rows, shifts, weights. Returns the shifts (d_in, d_out)."""
        self.capture(edits)
        shifts = self.param_shifts()
        self.add(shifts)
        return shifts

    # Its parts ----------------------------------------------------------------------------------------------------

    def gradients(self, edits: Sequence[Tokens], equivalents: Sequence[Tokens], unrelated: Sequence[Tokens]) -> Losses:
        """A step up to the gradients of the networks' parameters, not yet clipped."""
        self.capture(edits)
        shifts = self.param_shifts()
        self.model.zero_grad()
        losses = Losses()
        self.add(shifts)
        for batch in self.batches(equivalents):
            loss = _cross_entropy(self._logits(batch), batch["labels"])
            loss.backward()
            losses.equivalent.append(loss.item())
        self.add(shifts, sign=-1)
        for batch in self.batches(unrelated):
            with torch.no_grad():
                reference = self._logits(batch)
            self.add(shifts)
            loss = _divergence(reference, self._logits(batch), batch["labels"])
            (self.settings.locality * loss).backward()
            self.add(shifts, sign=-1)
            losses.locality.append(loss.item())
        self._back(shifts)
        return losses

    def batches(self, texts: Sequence[Tokens]) -> list[Batch]:
        """Longest texts first, a fixed number of texts per batch, padded with zeros on the right."""
        ordered = sorted(texts, key=lambda text: len(text.input_ids), reverse=True)
        size = self.settings.batch
        return [self._padded(ordered[start : start + size]) for start in range(0, len(ordered), size)]

    def capture(self, edits: Sequence[Tokens]) -> None:
        """Keys and value gradients of the batches' mean token loss, into the cache; the moments take them in."""
        batches = self.batches(edits)
        self._batches = len(batches)
        for number, batch in enumerate(batches):
            keys: dict[int, Tensor] = {}
            grads: dict[int, Tensor] = {}
            handles = []
            chosen = torch.where(batch["labels"] != IGNORED)
            for place, module in enumerate(self.modules):
                handles.append(module.register_forward_hook(partial(_keep, keys, grads, place, chosen)))
            _cross_entropy(self._logits(batch), batch["labels"]).backward()
            for handle in handles:
                handle.remove()
            for place in range(len(self.modules)):
                u, g = keys[place].to(torch.float32), grads[place].to(torch.float32)
                self._network(place).moments.update(torch.cat((u, g), -1))
                torch.save(u, self._file(place, number, "keys"))
                torch.save(g, self._file(place, number, "value_grads"))

    def rows(self, place: int) -> tuple[Tensor, Tensor]:
        """(u, g) of one layer, read back from the cache."""
        u, g = (
            torch.cat([torch.load(self._file(place, number, what)) for number in range(self._batches)])
            for what in ("keys", "value_grads")
        )
        return u, g

    def param_shifts(self) -> list[Tensor]:
        """S per layer (d_in, d_out), of the rows in the cache."""
        shifts = []
        for place in range(len(self.modules)):
            network, layer = self._network(place), self.places[place]
            keys, value_grads = self.rows(place)
            value_diffs = torch.empty((0, network.d_out), device=self.device)
            for part in self._chunks(len(keys)):
                with torch.no_grad():
                    found = network.value_diffs(keys[part], value_grads[part], layer)
                value_diffs = torch.cat((value_diffs, found))
            shifts.append(torch.linalg.solve(self._matrix(place, keys), keys.T @ value_diffs))
        return shifts

    def add(self, shifts: Sequence[Tensor], sign: int = 1) -> None:
        """Add shifts to the edited weights in their own dtype, or take them off."""
        for module, shift in zip(self.modules, shifts, strict=True):
            oriented = shift.T if isinstance(module, nn.Linear) else shift
            module.weight.data += (oriented if sign > 0 else -oriented).to(module.weight.dtype)

    def _back(self, shifts: Sequence[Tensor]) -> None:
        """From the edited weights' gradients to those of the networks' parameters."""
        self.optimizer.zero_grad()
        for place, module in enumerate(self.modules):
            network, layer = self._network(place), self.places[place]
            keys, value_grads = self.rows(place)
            grad = module.weight.grad.to(torch.float32)
            if isinstance(module, nn.Linear):
                grad = grad.T
            with torch.no_grad():
                solved = torch.linalg.solve(self._matrix(place, keys), grad)
                ridge_grad = -network.log_ridge(layer).exp() * (solved * shifts[place]).sum()
            targets = keys @ solved
            (ridge_grad * network.log_ridge(layer)).backward()
            for part in self._chunks(len(keys)):
                value_diffs = network.value_diffs(keys[part], value_grads[part], layer)
                (targets[part] * value_diffs).sum().backward()

    @torch.no_grad()
    def _matrix(self, place: int, keys: Tensor) -> Tensor:
        """U^T U + lambda I, float32."""
        network = self._network(place)
        ridge = network.log_ridge(self.places[place]).exp()
        return keys.T @ keys + ridge * torch.eye(network.d_in, device=self.device)

    def _logits(self, batch: Batch) -> Tensor:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        if self.settings.unused_loss:
            inputs["labels"] = batch["labels"]
        logits: Tensor = self.model(**inputs)["logits"]
        return logits

    def _padded(self, texts: Sequence[Tokens]) -> Batch:
        rows = [
            (text.input_ids, (1,) * len(text.input_ids), (IGNORED,) * (len(text.input_ids) - text.supervised))
            for text in texts
        ]
        columns = (
            [torch.tensor(ids) for ids, _, _ in rows],
            [torch.tensor(mask) for _, mask, _ in rows],
            [torch.tensor((*ignored, *text.labels)) for (_, _, ignored), text in zip(rows, texts, strict=True)],
        )
        return {
            name: pad_sequence(column, batch_first=True, padding_value=padding).to(self.device)
            for name, column, padding in zip(
                ("input_ids", "attention_mask", "labels"), columns, (0, 0, IGNORED), strict=True
            )
        }

    def _chunks(self, rows: int) -> list[slice]:
        size = self.settings.editor_rows
        return [slice(number * size, (number + 1) * size) for number in range(math.ceil(rows / size))]

    def _network(self, place: int) -> OfficialNetwork:
        network = self.networks[str(self.shapes[place])]
        assert isinstance(network, OfficialNetwork)
        return network

    def _file(self, place: int, number: int, what: str) -> Path:
        return self.cache / f"{place}_{number}_{what}.pt"


def _shape(module: nn.Module) -> tuple[int, int]:
    """(d_in, d_out); only nn.Linear stores its weight the other way round."""
    rows, columns = module.weight.shape
    return (columns, rows) if isinstance(module, nn.Linear) else (rows, columns)


def _keep(
    keys: dict[int, Tensor],
    grads: dict[int, Tensor],
    place: int,
    chosen: tuple[Tensor, ...],
    _: nn.Module,
    args: tuple[Tensor, ...],
    output: Tensor,
) -> None:
    """A forward hook: rows at the chosen positions, now of the input and on the way back of the output's gradient."""
    keys[place] = args[0][chosen].detach()
    output.register_hook(lambda grad: grads.__setitem__(place, grad[chosen].detach()))


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch's labels."""
    chosen = torch.where(labels != IGNORED)
    return cross_entropy(logits[chosen], labels[chosen])


def _divergence(reference: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """KL(p_W0 || p_W0+S), mean over the batch's labels."""
    chosen = torch.where(labels != IGNORED)
    log_base, log_edited = reference[chosen].log_softmax(-1), logits[chosen].log_softmax(-1)
    return kl_div(log_edited, log_base, reduction="batchmean", log_target=True)
