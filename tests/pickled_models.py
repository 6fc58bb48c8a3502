"""Models with pickled weights, laid out as transformers 4 saved them: `pytorch_model.bin`, or shards and an index."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

WEIGHTS, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


class Runs:
    """Unpickled without protection, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch '{self.path}'",)


def load_model(folder: Path, *, pickled: bool) -> Any:
    """The model of a folder as transformers loads it, from its pickled weights or from its safetensors."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    auto = AutoModelForSeq2SeqLM if AutoConfig.from_pretrained(folder).is_encoder_decoder else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype="auto", use_safetensors=not pickled)


def pickle_weights(folder: Path, *, shards: int = 1, old_format: bool = False) -> Path:
    """Replace a folder's safetensors by the state dict of its model, in which tied tensors are one, as pickles."""
    state = load_model(folder, pickled=False).state_dict()
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
        path.unlink()
    if shards == 1:
        save_pickled(folder / WEIGHTS, state, old_format=old_format)
    else:
        save_shards(folder, [dict(list(state.items())[i::shards]) for i in range(shards)], old_format=old_format)
    return folder


def save_shards(folder: Path, parts: Sequence[Mapping[str, Any]], *, old_format: bool = False) -> None:
    weight_map = {}
    for number, part in enumerate(parts, 1):
        name = f"pytorch_model-{number:05}-of-{len(parts):05}.bin"
        save_pickled(folder / name, part, old_format=old_format)
        weight_map |= dict.fromkeys(part, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))


def save_pickled(path: Path, state: object, *, old_format: bool = False) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=not old_format)
