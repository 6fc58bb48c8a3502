"""The resumable state of a training run: one file, replaced atomically."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from malmen_cli.checkpoint.durable import write_durably
from malmen_cli.editing.editor import Editor
from malmen_cli.errors import UnsafeFile


@dataclass
class Progress:
    """Where a run stands; everything random is derived from the seed and the step, so nothing else is needed.

    Attributes:
        step: optimiser steps done. epoch, cursor: place in the shuffled rows. elapsed: seconds trained and validated.
        validated: share of the run at the end of the last validation.
        facts: facts edited so far. best: summary score of the best editor. history: one record per validation.
    """

    step: int = 0
    epoch: int = 0
    cursor: int = 0
    elapsed: float = 0.0
    validated: float = 0.0
    facts: int = 0
    best: float = -1.0
    best_step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_json(cls, text: str) -> Progress:
        """Raises ValueError, TypeError or KeyError for what no run has written."""
        progress = cls(**json.loads(text))
        counts = (progress.step, progress.epoch, progress.cursor, progress.facts, progress.best_step)
        numbers = [
            progress.best,
            progress.elapsed,
            progress.validated,
            *(record["summary"] for record in progress.history),
        ]
        if not all(type(count) is int and 0 <= count < 1 << 63 for count in counts):
            raise ValueError("its progress is not counted in whole numbers")
        if not all(type(x) in (int, float) and math.isfinite(x) and -1 <= x < 1e18 for x in numbers):
            raise ValueError("its progress holds numbers that are none")
        return progress


def save_state(
    path: Path, editor: Editor, optimizer: torch.optim.Optimizer, best: dict[str, Tensor], progress: Progress
) -> None:
    """Write editor, optimiser, best editor and progress as one file; a kill leaves the old file or the new."""
    tensors = {f"editor.{name}": tensor for name, tensor in editor.tensors().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value).cpu() for key, value in state.items()}
    # Copies: the same storage under two names is refused, and best and current may share the preserved keys.
    data = save({k: v.clone().contiguous() for k, v in tensors.items()}, {"progress": json.dumps(vars(progress))})
    write_durably(path, data)


def load_state(path: Path, editor: Editor, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], Progress]:
    """Put a saved state into editor and optimiser; returns the best editor's tensors and the progress.

    Raises:
        UnsafeFile: not a state of this editor.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            progress = Progress.from_json(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                moments.setdefault(int(index), {})[key] = tensor
        best = {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}
        if best:  # none before the first validation
            editor.load_tensors(best)  # which checks it
        editor.load_tensors({k.removeprefix("editor."): v for k, v in tensors.items() if k.startswith("editor.")})
        _check_moments(moments, optimizer)
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    except Exception as error:  # a file that anybody may have written
        raise UnsafeFile(f"{path}: {error}", remedy="Train anew, without --resume.") from None
    return best, progress


def _check_moments(moments: dict[int, dict[str, Tensor]], optimizer: torch.optim.Optimizer) -> None:
    """Adam takes what it is given: a moment of another shape would fail, or spread, in the next step."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, state in moments.items():
        shape = parameters[index].shape if 0 <= index < len(parameters) else None
        wanted = {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape}
        if {key: tensor.shape for key, tensor in state.items()} != wanted:
            raise ValueError(f"the optimiser's state {index} is of another editor")
        if not all(t.dtype == torch.float32 and bool(t.isfinite().all()) for t in state.values()):
            raise ValueError(f"the optimiser's state {index} holds numbers that are none")
