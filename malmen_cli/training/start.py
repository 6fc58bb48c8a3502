"""Where training starts: an untrained editor whose scales come from the model's own rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from malmen_cli.config import EditorConfig
from malmen_cli.editing.editor import REFERENCE_ROWS, Editor, LayerShape
from malmen_cli.editing.normal_equation import PreservedKeys
from malmen_cli.editing.normalizer import Normalizer
from malmen_cli.errors import UnsupportedModel
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.training.features import Features

SAMPLE = 2048
"""Rows that the starting scales are measured on."""


def untrained_editor(
    model: LanguageModel, features: Features, config: EditorConfig, seed: int, kind: type[Editor] = Editor
) -> Editor:
    """An editor with the identity as hyper-network, the features' moments, and preserved keys drawn from them.

    The first step size makes the mean |d| a set share of the layer's mean |u W0|, and the first ridge is a set share of
    the keys' mean squared norm, so that one setting fits models of any scale.

    Raises:
        UnsupportedModel: a layer's rows have no scale to measure.
    """
    editor = kind(model.shapes, rank=config.rank, blocks=config.blocks, step_size=config.step_size, seed=seed)
    editor.normalizers = _moments(model, features, config)
    editor.to(model.device)
    editor.freeze_normalizers()
    with torch.no_grad():
        for layer, weight in enumerate(model.weights()):
            weight = weight.to(model.device)
            keys, grads = features.sample(layer, SAMPLE)
            keys, grads = keys.to(model.device).float(), grads.to(model.device).float()
            eta = config.initial_step_size
            if eta is None:
                editor.raw_step_size[layer] = 0.0 if config.step_size == "log" else 1.0
                unit = float(editor.value_diffs(layer, keys, grads).norm(dim=1).mean())
                values = float((keys @ weight.float()).norm(dim=1).mean())
                _require_scale(model.shapes[layer].name, "puts out nothing at the facts' rows", values)
                _require_scale(model.shapes[layer].name, "has the same keys or value gradients for all facts", unit)
                eta = config.initial_change * values / unit
            ridge = config.initial_ridge or 0.001 * float(keys.square().sum(1).mean())
            _require_scale(model.shapes[layer].name, "reads nothing at the facts' rows", ridge)
            editor.raw_step_size[layer] = math.log(eta) if config.step_size == "log" else eta
            editor.log_ridge[layer] = math.log(ridge)
        editor.log_strength.fill_(math.log(config.initial_strength * REFERENCE_ROWS))
        editor.strength_power.fill_(config.initial_power)
    if config.preserved_keys and editor.preserves and len(features.unrelated_keys[0]):
        editor.preserved = [_sampled(keys, config.preserved_keys, seed) for keys in features.unrelated_keys]
    return editor


def require_weights(model: LanguageModel, config: EditorConfig) -> None:
    """Ask before rows are captured what `untrained_editor` would find out after it: that no layer's weight is 0.

    Raises:
        UnsupportedModel: one is, as in blocks that are made to be trained later, and the first step size follows it.
    """
    for layer in model.layers:
        if config.initial_step_size is None and not layer.weight.any():
            raise UnsupportedModel(f"the weight of {layer.name} is 0 throughout", remedy=_OTHER_LAYERS)


_OTHER_LAYERS = "Leave it out: name the other layers with --layers."


def _require_scale(name: str, otherwise: str, measured: float) -> None:
    """What starting scales are reckoned from is not 0, and finite."""
    if not 0 < measured < math.inf:
        found = otherwise if measured == 0 else "puts out or gets numbers that are not finite"
        raise UnsupportedModel(f"{name} {found}: there is nothing to start from", remedy=_OTHER_LAYERS)


def _sampled(keys: Tensor, most: int, seed: int) -> PreservedKeys:
    """Some of the rows, the same ones at all layers that have as many."""
    generator = torch.Generator().manual_seed(seed)
    return PreservedKeys(keys[torch.randperm(len(keys), generator=generator)[:most].sort().values])


def editor_size(shapes: Sequence[LayerShape], config: EditorConfig, unrelated_rows: int) -> int:
    """Bytes of an editor's tensors, at most about."""
    numbers = 0
    for d_in, d_out in {(shape.d_in, shape.d_out) for shape in shapes}:
        numbers += config.blocks * (2 * config.rank + 1) * (d_in + d_out)
    for shape in shapes:
        numbers += (2 * config.blocks + 4) * (shape.d_in + shape.d_out)
        numbers += min(config.preserved_keys, unrelated_rows) * shape.d_in
    return 4 * numbers + (1 << 16)


def _moments(model: LanguageModel, features: Features, config: EditorConfig) -> list[Normalizer]:
    """The features' moments per layer, or merged over all layers of one shape."""
    if config.normalise == "layer":
        return features.normalizers
    merged: dict[tuple[int, int], Normalizer] = {}
    for shape, moments in zip(model.shapes, features.normalizers, strict=True):
        merged.setdefault((shape.d_in, shape.d_out), Normalizer(shape.d_in + shape.d_out)).merge(moments)
    return [merged[shape.d_in, shape.d_out] for shape in model.shapes]
