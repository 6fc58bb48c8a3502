"""Edited layers as the ledger describes them: a module path and the tensor that holds its weight. No torch."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from malmen_cli.errors import UnsafeFile
from malmen_cli.ledger import ModelRecord, store

_VERIFY = "run malmen verify; restore the workspace from a backup"


@dataclass(frozen=True, slots=True)
class TensorLayer:
    """An edited layer with the tensor that holds its weight in the checkpoint.

    Attributes:
        name: module path. tensor: name in the safetensors file. transposed: stored (d_out, d_in), as nn.Linear does.
    """

    name: str
    tensor: str
    transposed: bool
    d_in: int
    d_out: int


def layers_of(description: Mapping[str, Any]) -> list[TensorLayer]:
    """The edited layers that a model's or an editor's description names.

    Raises:
        UnsafeFile: the description is malformed.
    """
    try:
        layers = [TensorLayer(**layer) for layer in description["layers"]]
        sound = all(
            isinstance(x.name, str)
            and isinstance(x.tensor, str)
            and isinstance(x.transposed, bool)
            and type(x.d_in) is type(x.d_out) is int
            and x.d_in > 0
            and x.d_out > 0
            for x in layers
        )
    except (KeyError, TypeError) as error:
        raise UnsafeFile(f"the description of the edited layers is malformed: {error}", remedy=_VERIFY) from None
    if not layers or not sound or len({x.name for x in layers}) != len(layers):
        raise UnsafeFile("the description of the edited layers is malformed", remedy=_VERIFY)
    return layers


def all_layers(db: sqlite3.Connection, model: ModelRecord) -> list[TensorLayer]:
    """Every layer that the model's registration or one of its editors names."""
    found = {layer.tensor: layer for layer in layers_of(model.architecture)}
    for editor in store.editors(db, model.id):
        found |= {layer.tensor: layer for layer in layers_of(editor.config)}
    return list(found.values())
