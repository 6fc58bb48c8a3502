"""Between a loaded model's layers and the files' tensors: matched by value, whatever either side calls them."""

from __future__ import annotations

from typing import Any

import torch

from malmen_cli.checkpoint.digests import digest_bytes
from malmen_cli.checkpoint.manifest import Manifest
from malmen_cli.errors import UnsupportedModel
from malmen_cli.language_models.edited_layers import EditedLayer
from malmen_cli.operations.layers import TensorLayer
from malmen_cli.operations.tensors import DTYPES, to_bytes, torch_dtype


def stored_dtype_of(manifest: Manifest) -> torch.dtype | None:
    """What most of a model is stored in: a config.json may ask for less, and what is narrowed matches nothing."""
    sizes = dict.fromkeys(DTYPES, 0)
    for record in manifest.tensors.values():
        if record.dtype in sizes:
            sizes[record.dtype] += record.stop - record.start
    return DTYPES[max(sizes, key=lambda name: sizes[name])] if any(sizes.values()) else None


def match_tensor(manifest: Manifest, layer: EditedLayer) -> TensorLayer:
    """The tensor of the files that holds a loaded layer's weight: by value, so that any name will do.

    Raises:
        UnsupportedModel: no tensor, or several, hold just this weight.
    """
    weight: Any = layer.module.weight
    parameter, digests = f"{layer.name}.weight", dict[str, str]()
    matching, named = [], []
    for name, record in manifest.tensors.items():
        called_so = parameter.endswith(name) or name.endswith(parameter)  # up to a prefix that only one of them has
        if tuple(record.shape) != tuple(weight.shape) or (record.dtype not in DTYPES and not called_so):
            continue
        if record.dtype not in digests:
            # A weight that was widened on loading gives its bytes back when it is narrowed again.
            digests[record.dtype] = digest_bytes(to_bytes(weight.detach().to("cpu", torch_dtype(record.dtype))))
        if digests[record.dtype] == record.digest:
            matching.append(name)
            named += [name] * called_so
    if len(named or matching) != 1:
        raise UnsupportedModel(
            f"{len(named or matching)} tensors of the files hold the weight of {layer.name}; just one must",
            remedy="Layers that transformers splits, fuses or converts on loading cannot be edited; see --layers.",
        )
    d_in, d_out = layer.weight.shape
    return TensorLayer(layer.name, (named or matching)[0], layer.transposed, d_in, d_out)
