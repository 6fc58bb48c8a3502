"""Editors on disk: a folder with `editor.safetensors` and `editor.json`, bound to a base and its layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malmen_cli.checkpoint.safetensors_file import open_regular
from malmen_cli.config import Dtype, TrainingConfig
from malmen_cli.editing.editor import Editor, LayerShape
from malmen_cli.errors import UnsafeFile, WrongBase
from malmen_cli.ledger.records import EditorRecord, ModelRecord
from malmen_cli.operations.layers import TensorLayer, layers_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TENSORS, DESCRIPTION = "editor.safetensors", "editor.json"
FORMAT = 1
_KEYS = {"format", "base", "layers", "per_fact", "config", "training"}
_DESCRIPTION_LIMIT = 16 << 20  # bytes
_TRAIN_AGAIN = "`malmen verify` names what is wrong; train it again."


def editor_files(
    editor: Editor, model: ModelRecord, layers: list[TensorLayer], config: TrainingConfig, training: Mapping[str, Any]
) -> dict[str, bytes]:
    """The editor's two files: the description holds the resolved configuration, the base and the training log."""
    from safetensors.torch import save

    description = {
        "format": FORMAT,
        "base": model.base_digest,
        "layers": [asdict(layer) for layer in layers],
        "per_fact": True,
        "config": config.model_dump(mode="json"),
        "training": dict(training),
    }
    text = json.dumps(description, indent=1, ensure_ascii=False, sort_keys=True)
    # One storage per name: with the paper's settings layers of one shape share a normaliser.
    tensors = {name: tensor.clone() for name, tensor in editor.tensors().items()}
    return {TENSORS: save(tensors), DESCRIPTION: text.encode()}


def settings_of(record: EditorRecord, dtype: Dtype | None = None) -> TrainingConfig:
    """The settings that an editor was trained with, as the ledger has them.

    Args:
        dtype: what the language model shall compute in, instead of what it computed in then.

    Raises:
        UnsafeFile: the ledger's record is malformed.
    """
    try:
        settings = TrainingConfig.model_validate(record.config["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(record, error) from None
    return settings if dtype is None else settings.model_copy(update={"dtype": dtype})


def load_editor(
    folder: Path, model: ModelRecord, record: EditorRecord, device: str | torch.device = "cpu"
) -> tuple[Editor, list[TensorLayer]]:
    """An editor from its folder on a device, with everything checked that a stranger could have changed.

    Raises:
        UnsafeFile: malformed, tensors of wrong names, shapes or sizes, not finite. WrongBase: another model's editor.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        description = _description(folder / DESCRIPTION)
        config = TrainingConfig.model_validate(description["config"])
        base = description["base"]
        layers = layers_of(description)
        tensors = load((folder / TENSORS).read_bytes())
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, RecursionError, UnsafeFile) as error:
        raise _damaged(record, error) from None
    if base != model.base_digest:
        raise WrongBase(
            f"editor {record.id[:10]} was trained for another base than {model.name}'s",
            remedy="Train one: malmen train FILE --model " + model.name,
        )
    for layer in layers:
        tensor = model.manifest.tensors.get(layer.tensor)
        stored = (layer.d_out, layer.d_in) if layer.transposed else (layer.d_in, layer.d_out)
        if tensor is None or tuple(tensor.shape) != stored:
            raise WrongBase(
                f"editor {record.id[:10]}: the model has no tensor {layer.tensor!a} of shape {stored}",
                remedy="Train one: malmen train FILE --model " + model.name,
            )
    _check_size(config, layers, tensors, record)
    editor = Editor(
        [LayerShape(layer.name, layer.d_in, layer.d_out) for layer in layers],
        rank=config.editor.rank,
        blocks=config.editor.blocks,
        step_size=config.editor.step_size,
    )
    editor.to(device).requires_grad_(False)
    try:
        editor.load_tensors(tensors)
    except UnsafeFile as error:
        raise _damaged(record, error) from None
    return editor, layers


def _description(path: Path) -> dict[str, Any]:
    """Raises ValueError or KeyError for what `editor_files` could not have written."""
    with open_regular(path) as file:
        data = file.read(_DESCRIPTION_LIMIT + 1)
    if len(data) > _DESCRIPTION_LIMIT:
        raise ValueError("the description is too large")
    description = json.loads(data.decode())
    if not isinstance(description, dict) or description.keys() != _KEYS:
        raise ValueError(f"its description does not hold just {', '.join(sorted(_KEYS))}")
    if description["format"] != FORMAT or description["per_fact"] is not True:
        raise ValueError(f"it is not of format {FORMAT}, or its rows are not per_fact: this malmen cannot use it")
    return description


def _damaged(record: EditorRecord, error: Exception) -> UnsafeFile:
    why = error.message.removeprefix("editor: ") if isinstance(error, UnsafeFile) else error
    return UnsafeFile(f"editor {record.id[:10]} is damaged: {why}", remedy=_TRAIN_AGAIN)


def _check_size(
    config: TrainingConfig, layers: list[TensorLayer], tensors: Mapping[str, Tensor], record: EditorRecord
) -> None:
    """Refuse a description that asks for larger hyper-networks than the tensors are, before any is allocated."""
    network = f"{layers[0].d_in}x{layers[0].d_out}"
    first = tensors.get(f"networks.{network}.blocks.0.A")
    blocks = sum(name.startswith(f"networks.{network}.blocks.") and name.endswith(".A") for name in tensors)
    if first is None or first.ndim != 2 or (blocks, first.shape[1]) != (config.editor.blocks, config.editor.rank):
        raise UnsafeFile(
            f"editor {record.id[:10]}: its description and its tensors disagree about its size",
            remedy=_TRAIN_AGAIN,
        )
