"""Registering models, and loading them at their base weights whatever has been applied since."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from malmen_cli.checkpoint.lock import PATIENCE
from malmen_cli.checkpoint.manifest import read_manifest
from malmen_cli.checkpoint.pickled_files import pickled_start
from malmen_cli.errors import UnknownName, UnsupportedModel, UsageError
from malmen_cli.ledger import Ledger, ModelRecord, Registration, register_model, store
from malmen_cli.ledger.registration import check_name
from malmen_cli.ledger.sidecar import moved_to
from malmen_cli.operations.layers import TensorLayer, all_layers

if TYPE_CHECKING:
    from malmen_cli.config import RunSettings
    from malmen_cli.language_models.language_model import LanguageModel
    from malmen_cli.language_models.placement import Placement


def find_model(db: sqlite3.Connection, name: str | None) -> ModelRecord:
    """The registered model of this name or folder; without a name the only one.

    A working copy is also found by what it was copied from: a repository's id, a known name, a snapshot's folder.

    Raises:
        UnknownName, UsageError: none fits, or several.
    """
    if name is None:
        return store.only_model(db)
    found = _registered(db, name)
    if found is not None:
        return found
    from malmen_cli.operations.hub_models import unknown_model

    if is_folder(name):
        remedy = f"Register it: malmen models add NAME {quote(name)}. Where a model was moved to: malmen models move."
        raise UnknownName(f"no model is registered in the folder {name}", remedy=remedy)
    raise unknown_model(name)


def _registered(db: sqlite3.Connection, name: str) -> ModelRecord | None:
    for model in store.models(db):
        if model.name == name:
            return model
    # Only now, since they load huggingface_hub.
    from malmen_cli.language_models.hub_cache import snapshot_of
    from malmen_cli.operations.hub_models import converted_from, copied_from

    if not is_folder(name):
        return copied_from(db, name, None)
    folder, snapshot = Path(name), snapshot_of(Path(name))
    found = store.model_at(db, folder)
    if found is not None:
        return found
    return copied_from(db, name, snapshot) if snapshot is not None else converted_from(db, folder)


def is_folder(name: str) -> bool:
    """Whether a name is a folder's path; what the system cannot even look up is none."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


def find_or_register(
    ledger: Ledger,
    name: str | None,
    command: str,
    timeout: float = PATIENCE,
    fetch: Callable[[str], object] | None = None,
    layers: Sequence[str] | None = None,
) -> tuple[ModelRecord, Registration | None]:
    """`find_model`, registering what is used for the first time: a folder under its own name, or a model of the local
    hub cache under the known name it was asked by, or its repository's.

    Args:
        fetch: brings what is neither registered nor a folder into the hub cache. layers: to be registered where malmen
            does not find any by itself.
    """
    with ledger.read() as db:
        if name is None:
            return find_model(db, None), None
        found = _registered(db, name)
    if found is not None:
        return found, None
    if fetch is not None and not is_folder(name):
        fetch(name)
    with ledger.hold(command, timeout):
        with ledger.read() as db:
            found = _registered(db, name)  # by another process, while this one waited
        return (found, None) if found is not None else _register_first(ledger, name, layers, command, timeout)


def _register_first(
    ledger: Ledger, name: str, layers: Sequence[str] | None, command: str, timeout: float
) -> tuple[ModelRecord, Registration]:
    from malmen_cli.language_models.hub_cache import find_snapshot, snapshot_of
    from malmen_cli.operations.hub_models import name_for, plain_name, unknown_model

    snapshot = snapshot_of(Path(name)) if is_folder(name) else find_snapshot(name)
    if snapshot is None and not is_folder(name):
        raise unknown_model(name)
    new_name = name_for(name, snapshot) if snapshot is not None else plain_name(Path(name).resolve().name)
    with ledger.read() as db:
        taken = new_name in {model.name for model in store.models(db)}
    if taken:
        raise UsageError(
            f"the name {new_name} is taken by another folder",
            remedy=f"Register it: malmen models add NAME {quote(name)}",
        )
    try:
        registration = register_source(ledger, new_name, name, command=command, timeout=timeout)
    except UnsupportedModel:
        if layers is None:
            raise
        registration = register_source(ledger, new_name, name, layers=layers, command=command, timeout=timeout)
    return registration.model, registration


def register_source(
    ledger: Ledger,
    name: str,
    source: str,
    *,
    layers: Sequence[str] | None = None,
    command: str = "",
    timeout: float = PATIENCE,
) -> Registration:
    """Register a local folder, to be edited in place, or a working copy of what cannot be: a model of the local hub
    cache, or a folder whose weights are pickled.

    Args:
        source: a folder (one of a hub cache's snapshots, too), a repository's id, or a known name.

    Raises:
        UnknownName: neither. UnsupportedModel, UnsafeFile: it cannot be edited, and is not registered.
    """
    from malmen_cli.language_models.hub_cache import find_snapshot, snapshot_of
    from malmen_cli.operations.hub_models import unknown_model, working_copy
    from malmen_cli.operations.working_copies import note_about

    check_name(name)
    snapshot = snapshot_of(Path(source)) if is_folder(source) else find_snapshot(source)
    pickled = Path(source) if is_folder(source) and pickled_start(Path(source)) is not None else None
    if copied := snapshot or pickled:
        with working_copy(ledger, name, copied, command, timeout) as (folder, origin):
            details = {"origin": origin}
            found = register(ledger, name, folder, layers=layers, command=command, details=details, timeout=timeout)
        return replace(found, note=note_about(name, folder, origin))
    if not is_folder(source) and not _is_path(source):
        raise unknown_model(source)
    return register(ledger, name, Path(source), layers=layers, command=command, timeout=timeout)


def _is_path(text: str) -> bool:
    """Whether a name that leads nowhere was meant as a path."""
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or Path(text).exists()


def register(
    ledger: Ledger,
    name: str,
    folder: Path,
    *,
    layers: Sequence[str] | None = None,
    command: str = "",
    details: Mapping[str, Any] | None = None,
    timeout: float = PATIENCE,
) -> Registration:
    """Register a local folder: its manifest, the edited layers matched to the file's tensors, their base tensors.

    Raises:
        UnsupportedModel: transformers cannot load it, or a layer cannot be edited. UnsafeFile: links, bad headers.
    """
    from malmen_cli.language_models.language_model import LanguageModel
    from malmen_cli.language_models.loading import refuse_absurd
    from malmen_cli.operations.matching import match_tensor, stored_dtype_of

    check_name(name)
    if (moved := moved_to(ledger, folder)) is not None:
        raise UsageError(
            f"{folder} is the edited {moved}, whose folder is gone: as a new model its edits could not be taken back",
            remedy=f"Say that it was moved: malmen models move {moved} {quote(str(folder))}",
        )
    manifest = read_manifest(folder)
    refuse_absurd(folder, sum(weights.size for weights in manifest.weights.values()))
    model = LanguageModel(folder, layers=layers, dtype=stored_dtype_of(manifest))
    model.require_usable()
    found = [match_tensor(manifest, layer) for layer in model.layers]
    architecture = {
        "model_type": model.model_type,
        "task": model.task,
        "dtype": manifest.tensors[found[0].tensor].dtype,
        "layers": [asdict(layer) for layer in found],
    }
    tensors = [layer.tensor for layer in found]
    return register_model(
        ledger, name, folder, manifest, tensors, architecture, command=command, details=details, timeout=timeout
    )


def load_base(
    ledger: Ledger,
    model: ModelRecord,
    layers: Sequence[TensorLayer],
    device: str | Placement = "cpu",
    settings: RunSettings | None = None,
    needs: Mapping[str, int] | None = None,
) -> LanguageModel:
    """The language model at its base weights: every tensor that was ever edited is overlaid with its base object.

    Args:
        layers: the layers to be edited (captured, given gradients), in the editor's order.
        device: as `pick_device` names it, or where the model has been placed.
        settings: the editor's, which say in what dtype the model is run and how its texts are read.
        needs: bytes that the work takes besides the weights, by what they are for.

    Raises:
        NoRoom: less memory is free; nothing was loaded.
    """
    from malmen_cli.config import RunSettings
    from malmen_cli.language_models.language_model import LanguageModel
    from malmen_cli.operations.memory import place_model, run_dtype
    from malmen_cli.operations.tensors import stored_tensor

    settings = settings or RunSettings()
    language_model = LanguageModel(
        model.path,
        layers=[layer.name for layer in layers],
        device=place_model(ledger, model, layers, device, settings) if isinstance(device, str) else device,
        needs=needs,
        dtype=run_dtype(settings),
        chat_template=settings.chat_template,
        end_of_text=settings.end_of_text,
    )
    with ledger.read() as db:
        edited = store.state(db, model.id).keys()
        known = {layer.tensor: layer.name for layer in all_layers(db, model)}
    overlay = {}
    for tensor in edited:
        record = model.manifest.tensors[tensor]
        overlay[known[tensor]] = stored_tensor(ledger.objects, record, record.digest)
    language_model.overlay(overlay)
    return language_model


def pick_device(name: str) -> str:
    """The name of a device that is there; `auto` is the CPU where there is no GPU.

    Raises:
        UsageError: a device that is not there.
    """
    from malmen_cli.language_models.placement import check_device

    return check_device(name)
