"""From stored rows to new tensors: the solve over all active facts, without the language model.

The rows of the active facts are summed in the order of their digests, whatever order the facts were applied in, so
that entries which share no prompt commute bit for bit. Shifts that a per-set method has made become new tensors here
too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from malmen_cli.checkpoint.digests import digest_bytes
from malmen_cli.checkpoint.patch import TensorChange
from malmen_cli.editing.change import change_figures
from malmen_cli.editing.normal_equation import CONDITION_LIMIT
from malmen_cli.errors import NumericalFailure, VerificationFailed
from malmen_cli.language_models.host_memory import give_back_freed, large_blocks_apart
from malmen_cli.ledger import Ledger
from malmen_cli.ledger.records import ModelRecord, ParameterDelta, RowSlice
from malmen_cli.methods.per_fact import Answer, RowEditor
from malmen_cli.operations.layers import TensorLayer
from malmen_cli.operations.rows import RowReader
from malmen_cli.operations.tensors import base_tensor, stored_tensor, to_bytes, torch_dtype

CHUNK = 1024
"""Facts per chunk of rows fed to the normal equation."""

Inspector = Callable[[TensorLayer, Answer, Callable[[], Iterator[tuple[Tensor, Tensor]]]], None]
"""Called with a layer, its solution, and a way to read the layer's rows (u, d) once more, chunk by chunk."""

FAR_OFF = 10.0
"""Norm of an entry's change, over the base's, above which an edit is said to go too far."""

MOSTLY_LOST = 0.5
"""Relative error of rounding to the checkpoint's dtype above which an edit is said to have drowned in it."""


@dataclass(frozen=True)
class Solved:
    """What a solve over the active facts gives: the seam's tensor changes, their figures, and words of warning."""

    changes: list[TensorChange]
    deltas: list[ParameterDelta]
    figures: dict[str, dict[str, Any]]
    warnings: list[str]
    weights: dict[str, Tensor]  # by module path, in the checkpoint's own orientation and dtype


@large_blocks_apart()
def solve_active(
    ledger: Ledger,
    model: ModelRecord,
    editor: RowEditor,
    layers: Sequence[TensorLayer],
    rows: Callable[[str], Sequence[RowSlice]],
    read: RowReader,
    state: Mapping[str, str],
    device: torch.device,
    *,
    inspect: Inspector | None = None,
) -> Solved:
    """W0 + S per layer, one layer at a time, from the base and the rows of all active facts.

    Args:
        rows: layer name -> the stored rows of every active fact, in the order of the facts' edit digests.
        state: the tensors' digests now. inspect: sees every layer's solution while it is there.

    Raises:
        NumericalFailure: a solve failed, or an edited weight is not finite. VerificationFailed: a damaged object.
    """
    tensors = _Tensors(ledger, model, state)
    for index, layer in enumerate(layers):
        give_back_freed()  # what capturing and asking took, then what each layer took
        equation = editor.equation(index)
        slices = rows(layer.name)
        for keys, value_diffs in _chunks(slices, read):
            if (keys.shape[1], value_diffs.shape[1]) != (layer.d_in, layer.d_out):
                raise VerificationFailed(
                    f"stored rows of {layer.name} do not fit the layer", remedy="run malmen verify"
                )
            equation.update(keys.to(device), value_diffs.to(device))
            del keys, value_diffs  # before the next chunk is read
        give_back_freed()  # what the chunks took: the solve's matrices do not fit into their gaps
        solution = editor.solve(index, equation)
        if inspect is not None:
            inspect(layer, solution, partial(_chunks, slices, read))
        read.close_layer()
        editor.forget(index)
        condition = solution.condition_number
        if condition > CONDITION_LIMIT:
            tensors.warn(f"{layer.name}: the normal equation is ill-conditioned (condition number {condition:.1e})")
        shift, ridge, strength = solution.param_shift, solution.ridge, solution.preserved_strength
        figures = {
            "rows": equation.n,
            "form": solution.form,
            "residual": solution.residual,
            "condition_number": condition,
        }
        del equation, solution  # before there are tensors too
        step_size = float(editor.step_size(index))
        tensors.add(layer, shift, figures=figures, ridge=ridge, step_size=step_size, preserved_strength=strength)
    return tensors.solved


def solved_from_shifts(
    ledger: Ledger,
    model: ModelRecord,
    layers: Sequence[TensorLayer],
    shifts: Sequence[Tensor],
    state: Mapping[str, str],
    facts: int,
) -> Solved:
    """W0 + S per layer, of shifts (d_in, d_out) that a per-set method has made of so many facts.

    Raises:
        NumericalFailure: an edited weight is not finite.
    """
    tensors = _Tensors(ledger, model, state)
    for layer, shift in zip(layers, shifts, strict=True):
        tensors.add(layer, shift, figures={"facts": facts, "form": "per set"})
    return tensors.solved


class _Tensors:
    """Collects what becomes of each layer's tensor: W0 + S rounded, and the figures of that."""

    def __init__(self, ledger: Ledger, model: ModelRecord, state: Mapping[str, str]) -> None:
        self._ledger, self._model, self._state = ledger, model, state
        self.solved = Solved([], [], {}, [], {})

    def warn(self, words: str) -> None:
        self.solved.warnings.append(words)

    def add(
        self,
        layer: TensorLayer,
        param_shift: Tensor,
        *,
        figures: dict[str, Any],
        ridge: float | None = None,
        step_size: float | None = None,
        preserved_strength: float | None = None,
    ) -> None:
        """Raises NumericalFailure where an edited weight is not finite."""
        record = self._model.manifest.tensors[layer.tensor]
        dtype = torch_dtype(record.dtype)
        shift = param_shift.cpu()
        if layer.transposed:
            shift = shift.T
        original = base_tensor(self._ledger, self._model, layer.tensor)
        edited = (original.float() + shift.float()).to(dtype)
        if not bool(torch.isfinite(edited).all()):
            raise NumericalFailure(
                f"{layer.tensor}: an edited weight is not finite in {record.dtype}",
                remedy="The shift is out of the dtype's range: apply fewer facts, or train the editor again.",
            )
        data = to_bytes(edited)
        before = self._state.get(layer.tensor, record.digest)
        self.solved.changes.append(TensorChange(layer.tensor, before, digest_bytes(data), data))
        previous = original if before == record.digest else stored_tensor(self._ledger.objects, record, before)
        lost = rounding_loss(original, edited, shift)
        delta = ParameterDelta(
            tensor=layer.tensor,
            before=before,
            after=self.solved.changes[-1].after,
            **change_figures(previous, edited, original),
            rounding_loss=lost,
            ridge=ridge,
            step_size=step_size,
            preserved_strength=preserved_strength,
        )
        self.solved.deltas.append(delta)
        self.solved.figures[layer.name] = figures
        if lost > MOSTLY_LOST:
            self.warn(f"{layer.name}: rounding to {record.dtype} lost {lost:.0%} of the edit")
        if (relative := delta.relative_norm or 0.0) > FAR_OFF:
            self.warn(
                f"{layer.name}: the entry moves it by {relative:.0f} times its own norm: expect harm to other answers"
            )
        self.solved.weights[layer.name] = edited


def _chunks(slices: Sequence[RowSlice], read: RowReader) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(slices), CHUNK):
        yield read.chunk(slices[start : start + CHUNK])


def rounding_loss(base: Tensor, edited: Tensor, shift: Tensor) -> float:
    """|round(W0 + S) - (W0 + S)| / |S|: what the checkpoint's dtype cost, relative to the edit."""
    wanted = shift.double()
    return float((edited.double() - base.double() - wanted).norm() / wanted.norm().clamp(min=1e-300))
