"""Registering models, and loading them at their base weights whatever has been applied since."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from malmen_cli.checkpoint.manifest import Manifest, read_manifest
from malmen_cli.checkpoint.safetensors_file import read_tensor
from malmen_cli.errors import UnsupportedModel, UsageError
from malmen_cli.ledger import Ledger, ModelRecord, Registration, register_model, store
from malmen_cli.ledger.registration import check_name
from malmen_cli.operations.layers import TensorLayer, layers_of

if TYPE_CHECKING:
    from malmen_cli.language_models.language_model import EditedLayer, LanguageModel


def find_model(db: sqlite3.Connection, name: str | None) -> ModelRecord:
    """The registered model of this name or folder; without a name the only one.

    Raises:
        UnknownName, UsageError: none fits, or several.
    """
    if name is None:
        return store.only_model(db)
    if name in {model.name for model in store.models(db)} or not is_folder(name):
        return store.model_named(db, name)
    return store.model_at(db, Path(name)) or store.model_named(db, name)


def is_folder(name: str) -> bool:
    """Whether a name is a folder's path; what the system cannot even look up is none."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


def find_or_register(ledger: Ledger, name: str | None, command: str) -> tuple[ModelRecord, Registration | None]:
    """`find_model`, registering a folder that is used for the first time under its own name."""
    with ledger.read() as db:
        known = {model.name for model in store.models(db)}
        if name is None or name in known or not is_folder(name) or store.model_at(db, Path(name)) is not None:
            return find_model(db, name), None
    folder = Path(name).resolve()
    new_name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).lstrip(".-") or "model"
    if new_name in known:
        raise UsageError(
            f"the name {new_name} is taken by another folder", remedy=f"Register it: malmen models add NAME {folder}"
        )
    registration = register(ledger, new_name, folder, command=command)
    return registration.model, registration


def register(
    ledger: Ledger, name: str, folder: Path, *, layers: Sequence[str] | None = None, command: str = ""
) -> Registration:
    """Register a local folder: its manifest, the edited layers matched to the file's tensors, their base tensors.

    Raises:
        UnsupportedModel: transformers cannot load it, or a layer cannot be edited. UnsafeFile: links, bad headers.
    """
    from malmen_cli.language_models.language_model import LanguageModel

    check_name(name)
    manifest = read_manifest(folder)
    model = LanguageModel(folder, layers=layers)
    found = [match_tensor(folder, manifest, layer) for layer in model.layers]
    architecture = {
        "model_type": model.model_type,
        "task": "causal",
        "dtype": manifest.tensors[found[0].tensor].dtype,
        "layers": [asdict(layer) for layer in found],
    }
    return register_model(
        ledger, name, folder, manifest, [layer.tensor for layer in found], architecture, command=command
    )


def match_tensor(folder: Path, manifest: Manifest, layer: EditedLayer) -> TensorLayer:
    """The tensor of the files that holds a loaded layer's weight: by name, up to a prefix, and by value.

    Raises:
        UnsupportedModel: no tensor, or several, hold just this weight.
    """
    parameter = f"{layer.name}.weight"
    candidates = [name for name in manifest.tensors if parameter.endswith(name) or name.endswith(parameter)]
    matching = [name for name in candidates if _holds(folder, manifest, name, layer)]
    if len(matching) != 1:
        raise UnsupportedModel(
            f"{len(matching)} tensors of {folder.name} hold the weight of {layer.name}; just one must",
            remedy="Layers that transformers renames, fuses or ties on loading cannot be edited; see --layers.",
        )
    d_in, d_out = layer.weight.shape
    return TensorLayer(layer.name, matching[0], layer.transposed, d_in, d_out)


def _holds(folder: Path, manifest: Manifest, name: str, layer: EditedLayer) -> bool:
    from malmen_cli.operations.tensors import from_bytes, torch_dtype

    stored: Any = layer.module.weight
    record = manifest.tensors[name]
    if tuple(record.shape) != tuple(stored.shape):
        return False
    data = read_tensor(folder / record.file, manifest.slot(name))
    return bool((from_bytes(data, torch_dtype(record.dtype), record.shape) == stored.cpu()).all())


def load_base(ledger: Ledger, model: ModelRecord, layers: Sequence[TensorLayer], device: str = "cpu") -> LanguageModel:
    """The language model at its base weights: every tensor that was ever edited is overlaid with its base object.

    Args:
        layers: the layers to be edited (captured, given gradients), in the editor's order.
    """
    from malmen_cli.language_models.language_model import LanguageModel
    from malmen_cli.operations.tensors import stored_tensor

    language_model = LanguageModel(model.path, layers=[layer.name for layer in layers], device=device)
    with ledger.read() as db:
        edited = store.state(db, model.id).keys()
        known = {layer.tensor: layer.name for layer in all_layers(db, model)}
    overlay = {}
    for tensor in edited:
        record = model.manifest.tensors[tensor]
        overlay[known[tensor]] = stored_tensor(ledger.objects, record, record.digest)
    language_model.overlay(overlay)
    return language_model


def all_layers(db: sqlite3.Connection, model: ModelRecord) -> list[TensorLayer]:
    """Every layer that the model's registration or one of its editors names."""
    found = {layer.tensor: layer for layer in layers_of(model.architecture)}
    for editor in store.editors(db, model.id):
        found |= {layer.tensor: layer for layer in layers_of(editor.config)}
    return list(found.values())


def pick_device(name: str) -> str:
    """`auto` is the first GPU where there is one, else the CPU.

    Raises:
        UsageError: a device that is not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(name).type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("models are edited on cpu, cuda or mps")
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name}: {error}".splitlines()[0], remedy="Use --device cpu or auto.") from None
    return name
