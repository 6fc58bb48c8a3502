"""Small model folders of real safetensors files, written by hand: what the ledger's tests edit."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path

from malmen_cli.checkpoint.digests import digest_file

Tensors = Mapping[str, tuple[str, tuple[int, ...], bytes]]  # name -> dtype, shape, bytes

ITEM_SIZE = {"F32": 4, "BF16": 2, "F16": 2}
EDITED = ("h.0.mlp.weight", "h.1.mlp.weight", "h.2.mlp.weight")


def safetensors_bytes(tensors: Tensors, metadata: Mapping[str, str] | None = None) -> bytes:
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    data = b""
    for name, (dtype, shape, blob) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(blob)]}
        data += blob
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def write_model_folder(folder: Path, *, sharded: bool = False, dtype: str = "F32", seed: int = 0) -> Path:
    """A model of three editable tensors and an embedding, in one file or two shards, with config and tokenizer."""
    chance = random.Random(seed)
    shapes = dict.fromkeys(EDITED, (6, 4)) | {"embed.weight": (9, 4)}
    tensors = {
        name: (dtype, shape, chance.randbytes(shape[0] * shape[1] * ITEM_SIZE[dtype])) for name, shape in shapes.items()
    }
    folder.mkdir(parents=True)
    if sharded:
        files = {"model-00001-of-00002.safetensors": EDITED[:1], "model-00002-of-00002.safetensors": EDITED[1:]}
        files["model-00001-of-00002.safetensors"] += ("embed.weight",)
        for file, names in files.items():
            (folder / file).write_bytes(safetensors_bytes({name: tensors[name] for name in names}))
        index = {"metadata": {}, "weight_map": {name: file for file, names in files.items() for name in names}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors, {"format": "pt"}))
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("A model.")
    return folder


def file_digests(folder: Path) -> dict[str, str]:
    """Digest of every file below a folder, hidden ones too, by relative name."""
    return {str(path.relative_to(folder)): digest_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
