"""The resumable state of a training run: one file, replaced atomically."""

from __future__ import annotations

import json
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
        step: optimiser steps done. epoch, cursor: place in the shuffled rows. elapsed: seconds trained.
        facts: facts edited so far. best: summary score of the best editor. history: one record per validation.
    """

    step: int = 0
    epoch: int = 0
    cursor: int = 0
    elapsed: float = 0.0
    facts: int = 0
    best: float = -1.0
    best_step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


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
            progress = Progress(**json.loads(file.metadata()["progress"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                moments.setdefault(int(index), {})[key] = tensor
        editor.load_tensors({k.removeprefix("editor."): v for k, v in tensors.items() if k.startswith("editor.")})
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    except Exception as error:  # a file that anybody may have written
        raise UnsafeFile(f"{path}: {error}", remedy="Train anew, without --resume.") from None
    return {k.removeprefix("best."): v for k, v in tensors.items() if k.startswith("best.")}, progress
