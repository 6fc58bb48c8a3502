"""Editors on disk: a folder with `editor.safetensors` and `editor.json`, bound to a base, its layers and a method."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import ValidationError

from malmen_cli.checkpoint.safetensors_file import open_regular
from malmen_cli.config import Dtype, RunSettings, TrainingConfig, problems_of
from malmen_cli.editing.editor import LayerShape
from malmen_cli.errors import UnsafeFile, WrongBase
from malmen_cli.evaluation.overlap import TrainedOn
from malmen_cli.ledger.records import EditorRecord, ModelRecord
from malmen_cli.methods.per_fact import RowEditor
from malmen_cli.methods.registry import Method, method_of
from malmen_cli.methods.set_method import SetMethod
from malmen_cli.operations.layers import TensorLayer, layers_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TENSORS, DESCRIPTION = "editor.safetensors", "editor.json"
FORMAT = 1
_KEYS = {"format", "base", "layers", "per_fact", "config", "training"}
DESCRIPTION_LIMIT = 16 << 20  # bytes
_TRAIN_AGAIN = "`malmen verify` names what is wrong; train it again."

Files = Path | Mapping[str, bytes]
"""An editor's two files: their folder, or of one that is not kept anywhere their bytes."""


class _Tensors(Protocol):
    def tensors(self) -> dict[str, Tensor]: ...


def editor_files(
    editor: _Tensors,
    model: ModelRecord,
    layers: Sequence[TensorLayer],
    config: RunSettings,
    training: Mapping[str, Any],
) -> dict[str, bytes]:
    """The editor's two files: the description holds the resolved configuration, the base and how it was made."""
    from safetensors.torch import save

    description = {
        "format": FORMAT,
        "base": model.base_digest,
        "layers": [asdict(layer) for layer in layers],
        "per_fact": method_of({"config": config.model_dump()}).per_fact,
        "config": config.model_dump(mode="json"),
        "training": dict(training),
    }
    text = json.dumps(description, indent=1, ensure_ascii=False, sort_keys=True)
    # One storage per name: with the paper's settings layers of one shape share a normaliser.
    tensors = {name: tensor.clone() for name, tensor in editor.tensors().items()}
    return {TENSORS: save(tensors), DESCRIPTION: text.encode()}


def settings_of(record: EditorRecord, dtype: Dtype | None = None) -> RunSettings:
    """The settings that an editor was made with, as the ledger has them: of its method's class.

    Args:
        dtype: what the language model shall compute in, instead of what it computed in then.

    Raises:
        UnsafeFile: the ledger's record is malformed.
    """
    try:
        settings = _settings(method_of(record.config), record.config["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(record, error) from None
    return settings if dtype is None else settings.model_copy(update={"dtype": dtype})


def _settings(method: Method, stored: Any) -> RunSettings:
    """As a ledger or a file has them. No layers at all once stood for those of the registration.

    Raises:
        ValueError: they are none of this method's.
    """
    if isinstance(stored, dict) and stored.get("layers") == []:
        stored = {**stored, "layers": None}
    kind = method.settings_class()
    try:
        return kind.model_validate(stored)
    except ValidationError as error:
        raise ValueError(problems_of(error, kind)) from None


def load_editor(
    files: Files, model: ModelRecord, record: EditorRecord, device: str | torch.device = "cpu"
) -> tuple[RowEditor | SetMethod, list[TensorLayer]]:
    """An editor from its files, on a device, with everything checked that a stranger could have changed.

    Raises:
        UnsafeFile: malformed, tensors of wrong names, shapes or sizes, not finite. WrongBase: another model's editor.
        UsageError: of a method that this malmen does not know.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        description = _description(files)
        method = method_of(description)
        settings = _settings(method, description["config"])
        base = description["base"]
        layers = layers_of(description)
        tensors = load((files / TENSORS).read_bytes() if isinstance(files, Path) else files[TENSORS])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, RecursionError, UnsafeFile) as error:
        raise _damaged(record, error) from None
    again = f"Train one: malmen train FILE --model {model.name}" if method.trained else _made_again(method)
    if base != model.base_digest:
        made = "trained" if method.trained else "made"
        raise WrongBase(f"editor {record.id[:10]} was {made} for another base than {model.name}'s", remedy=again)
    for layer in layers:
        tensor = model.manifest.tensors.get(layer.tensor)
        stored = (layer.d_out, layer.d_in) if layer.transposed else (layer.d_in, layer.d_out)
        if tensor is None or tuple(tensor.shape) != stored:
            raise WrongBase(
                f"editor {record.id[:10]}: the model has no tensor {layer.tensor!a} of shape {stored}", remedy=again
            )
    if isinstance(settings, TrainingConfig):
        _check_size(settings, layers, tensors, record)
    editor = new_editor(method, settings, [LayerShape(layer.name, layer.d_in, layer.d_out) for layer in layers], device)
    try:
        editor.load_tensors(tensors)
    except UnsafeFile as error:
        raise _damaged(record, error) from None
    return editor, layers


def new_editor(
    method: Method, settings: RunSettings, shapes: Sequence[LayerShape], device: str | torch.device = "cpu"
) -> Any:
    """An editor of a method without any tensors yet: a `RowEditor`, or a `SetMethod`."""
    if not isinstance(settings, TrainingConfig):
        return method.load()(settings, shapes)
    editor = method.load()(
        shapes, rank=settings.editor.rank, blocks=settings.editor.blocks, step_size=settings.editor.step_size
    )
    return editor.to(device).requires_grad_(False)


def _made_again(method: Method) -> str:
    return f"One is made by the next apply: malmen apply FILE --method {method.name}"


def trained_on(folder: Path, record: EditorRecord) -> TrainedOn | None:
    """What an editor has seen in training; None where its files do not say, as those of earlier versions.

    Raises:
        UnsafeFile: malformed.
    """
    try:
        training = _description(folder)["training"]
        saw = training.get("saw") if isinstance(training, dict) else None
        return None if saw is None else TrainedOn.from_dict(saw)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, UnsafeFile) as error:
        raise _damaged(record, error) from None


def _description(files: Files) -> dict[str, Any]:
    """Raises ValueError or KeyError for what `editor_files` could not have written."""
    if isinstance(files, Path):
        with open_regular(files / DESCRIPTION) as file:
            data = file.read(DESCRIPTION_LIMIT + 1)
    else:
        data = files[DESCRIPTION]
    if len(data) > DESCRIPTION_LIMIT:
        raise ValueError("the description is too large")
    description = json.loads(data.decode())
    if not isinstance(description, dict) or description.keys() != _KEYS:
        raise ValueError(f"its description does not hold just {', '.join(sorted(_KEYS))}")
    if description["format"] != FORMAT or not isinstance(description["config"], dict):
        raise ValueError(f"it is not of format {FORMAT}: this malmen cannot use it")
    if description["per_fact"] is not method_of(description).per_fact:
        raise ValueError("it does not say of its rows what its method does")
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
