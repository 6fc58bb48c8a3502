"""From stored rows to new tensors: the solve over all active facts, without the language model.

The rows of the active facts are summed in the order of their digests, whatever order the facts were applied in, so
that entries which share no prompt commute bit for bit.
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
from malmen_cli.editing.editor import Editor
from malmen_cli.editing.normal_equation import CONDITION_LIMIT, Solution
from malmen_cli.errors import NumericalFailure, VerificationFailed
from malmen_cli.ledger import Ledger
from malmen_cli.ledger.records import ModelRecord, ParameterDelta, RowSlice
from malmen_cli.operations.layers import TensorLayer
from malmen_cli.operations.rows import RowReader
from malmen_cli.operations.tensors import base_tensor, stored_tensor, to_bytes, torch_dtype

CHUNK = 1024
"""Facts per chunk of rows fed to the normal equation."""

Inspector = Callable[[TensorLayer, Solution, Callable[[], Iterator[tuple[Tensor, Tensor]]]], None]
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


def solve_active(
    ledger: Ledger,
    model: ModelRecord,
    editor: Editor,
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
    changes, deltas, weights, figures, warnings = [], [], {}, {}, []
    for index, layer in enumerate(layers):
        record = model.manifest.tensors[layer.tensor]
        dtype = torch_dtype(record.dtype)
        equation = editor.equation(index)
        slices = rows(layer.name)
        for keys, value_diffs in _chunks(slices, read):
            if (keys.shape[1], value_diffs.shape[1]) != (layer.d_in, layer.d_out):
                raise VerificationFailed(
                    f"stored rows of {layer.name} do not fit the layer", remedy="run malmen verify"
                )
            equation.update(keys.to(device), value_diffs.to(device))
        solution = editor.solve(index, equation)
        if inspect is not None:
            inspect(layer, solution, partial(_chunks, slices, read))
        read.close_layer()
        editor.forget(index)
        shift = solution.param_shift.cpu()
        if layer.transposed:
            shift = shift.T
        original = base_tensor(ledger, model, layer.tensor)
        edited = (original.float() + shift.float()).to(dtype)
        if not bool(torch.isfinite(edited).all()):
            raise NumericalFailure(
                f"{layer.tensor}: an edited weight is not finite in {record.dtype}",
                remedy="The shift is out of the dtype's range: apply fewer facts, or train the editor again.",
            )
        data = to_bytes(edited)
        before = state.get(layer.tensor, record.digest)
        changes.append(TensorChange(layer.tensor, before, digest_bytes(data), data))
        previous = original if before == record.digest else stored_tensor(ledger.objects, record, before)
        lost = rounding_loss(original, edited, shift)
        deltas.append(
            ParameterDelta(
                tensor=layer.tensor,
                before=before,
                after=changes[-1].after,
                **change_figures(previous, edited, original),
                rounding_loss=lost,
                ridge=solution.ridge,
                step_size=float(editor.step_size(index)),
                preserved_strength=solution.preserved_strength,
            )
        )
        condition = solution.condition_number
        figures[layer.name] = {
            "rows": equation.n,
            "form": solution.form,
            "residual": solution.residual,
            "condition_number": condition,
        }
        if condition > CONDITION_LIMIT:
            warnings.append(f"{layer.name}: the normal equation is ill-conditioned (condition number {condition:.1e})")
        if lost > MOSTLY_LOST:
            warnings.append(f"{layer.name}: rounding to {record.dtype} lost {lost:.0%} of the edit")
        if (relative := deltas[-1].relative_norm or 0.0) > FAR_OFF:
            warnings.append(
                f"{layer.name}: the entry moves it by {relative:.0f} times its own norm: expect harm to other answers"
            )
        weights[layer.name] = edited
    return Solved(changes, deltas, figures, warnings, weights)


def _chunks(slices: Sequence[RowSlice], read: RowReader) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(slices), CHUNK):
        yield read.chunk(slices[start : start + CHUNK])


def rounding_loss(base: Tensor, edited: Tensor, shift: Tensor) -> float:
    """|round(W0 + S) - (W0 + S)| / |S|: what the checkpoint's dtype cost, relative to the edit."""
    wanted = shift.double()
    return float((edited.double() - base.double() - wanted).norm() / wanted.norm().clamp(min=1e-300))
