"""Memory and places of the work on a registered model: where it goes, what it needs, what a plan says of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from malmen_cli.config import RunSettings, TrainingConfig
from malmen_cli.editing.editor import LayerShape
from malmen_cli.language_models.footprint import Footprint, Job, Work, job_of, needs
from malmen_cli.language_models.placement import Placement, free_memory, place
from malmen_cli.language_models.texts import tokens_at_once
from malmen_cli.ledger import Ledger, ModelRecord
from malmen_cli.methods.per_fact import RowEditor
from malmen_cli.methods.registry import METHODS, method_of
from malmen_cli.methods.set_method import SetMethod
from malmen_cli.operations.layers import TensorLayer, all_layers
from malmen_cli.operations.tensors import torch_dtype


def place_model(
    ledger: Ledger,
    model: ModelRecord,
    layers: Sequence[TensorLayer],
    device: str,
    settings: RunSettings,
    job: Job | None = None,
) -> Placement:
    """Where a model goes, with every layer whose weights are ever changed on a device of its own.

    Args:
        device: as `pick_device` names it. layers: those to be edited. job: what is to be done there.

    Raises:
        UsageError: no such device.
    """
    with ledger.read() as db:
        resident = [layer.name for layer in all_layers(db, model)]
    names = [layer.name for layer in layers]
    return place(model.path, device, layers=names, resident=resident, dtype=run_dtype(settings), job=job)


def job_for(
    work: Work,
    settings: RunSettings,
    facts: int,
    batch_tokens: int | None,
    editor: RowEditor | SetMethod | None = None,
) -> Job:
    """The job of some facts under an editor's settings; of an editor that is there, with its own preserved keys."""
    if not isinstance(settings, TrainingConfig):
        method = method_of({"config": settings.model_dump()})
        copies = None if method.per_fact else method.load().copies
        own = max(batch_tokens or tokens_at_once(torch.float16), getattr(settings, "batch_tokens", 0))
        return Job(
            work,
            max(1, facts),
            batch_tokens=own,
            rank=0,
            blocks=0,
            preserved_keys=0,
            copies=copies,
            covariances=method.takes_text,
        )
    kept = None
    if editor is not None and not isinstance(editor, SetMethod):
        kept = max((len(keys.keys) for keys in editor.preserved if keys is not None), default=0)
    if not METHODS[settings.method].load().preserves:
        kept = 0
    return job_of(work, settings.model_dump(), facts=max(1, facts), batch_tokens=batch_tokens, preserved_keys=kept)


def needs_for(model: ModelRecord, layers: Sequence[TensorLayer], settings: RunSettings, job: Job) -> dict[str, int]:
    """Bytes beside the weights that a job cannot do without, for `load_base`."""
    shapes = [LayerShape(layer.name, layer.d_in, layer.d_out) for layer in layers]
    stored = torch_dtype(model.manifest.tensors[layers[0].tensor].dtype)
    return needs(shapes, job, run_dtype(settings) or stored)


def described(planned: Footprint, placement: Placement) -> dict[str, Any]:
    """What a job takes by parts, reckoned from the model's configuration, and what is free; bytes, for `--json`."""
    devices = sorted(set((placement.device_map or {}).values()) | {placement.device})
    free = free_memory("auto" if placement.device_map else placement.device)
    current = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    return {
        **planned.as_dict(),
        "devices": devices,
        "free": {name: free.get(current if name == "cuda" else name, free["cpu"]) for name in devices},
    }


def run_dtype(settings: RunSettings) -> torch.dtype | None:
    """What the language model is run in; None for its own."""
    return None if settings.dtype == "auto" else getattr(torch, settings.dtype)
