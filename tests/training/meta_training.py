"""A tiny model in float64 with its features, an editor whose every parameter matters, and a step over them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny_models import Family, make_facts, save_tiny_model

from malmen_cli.config import EditorConfig, TrainingConfig
from malmen_cli.editing.editor import Editor
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.training.features import Features
from malmen_cli.training.loop import GIB
from malmen_cli.training.rows import Split, split_rows
from malmen_cli.training.start import untrained_editor
from malmen_cli.training.step import MetaStep


@dataclass(frozen=True)
class Setup:
    model: LanguageModel
    split: Split
    features: Features
    editor: Editor
    step: MetaStep


def training_config(**changes: Any) -> TrainingConfig:
    """Small settings; `editor` in the changes is a table of the editor's settings."""
    editor = {"rank": 3, "blocks": 2, "initial_change": 0.2, "preserved_keys": 20} | changes.pop("editor", {})
    settings = {"facts_per_step": 8, "batch_tokens": 300, "held_out": 0.2, "editor_rows": 7} | changes
    return TrainingConfig(editor=EditorConfig(**editor), **settings)


def set_up(
    folder: Path,
    config: TrainingConfig,
    *,
    family: Family = "gpt2",
    facts: int = 12,
    dtype: torch.dtype = torch.float64,
) -> Setup:
    """Rows in training order, features captured, an editor moved off its start (where much of it has no effect)."""
    model = LanguageModel(save_tiny_model(folder / "model", family), dtype=dtype)
    split = split_rows(make_facts(facts), model.tokenizing, share=config.held_out, largest=400, seed=0)
    features = Features(
        folder / "features",
        model,
        split.train,
        batch_tokens=config.batch_tokens,
        kept_states=int(config.kept_states * GIB),
    )
    editor = untrained_editor(model, features, config.editor, config.seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in editor.networks.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return Setup(model, split, features, editor, MetaStep(model, editor, features, split.train, config))
