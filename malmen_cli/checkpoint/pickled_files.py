"""Where the weights of a folder without safetensors lie: one pickled file, or the shards that an index names.

Nothing is unpickled here: see `malmen_cli.language_models.pickled_weights`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from malmen_cli.checkpoint.manifest import ADAPTER, INDEX, SINGLE, read_index

PICKLED = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"


@dataclass(frozen=True, slots=True)
class PickledFiles:
    """Pickled weights.

    Attributes:
        files: the plain file to read, by the bare name that people know it by.
        weight_map: tensor -> name of its file; None where one file holds all.
    """

    files: dict[str, Path]
    weight_map: dict[str, str] | None

    @property
    def sizes(self) -> tuple[int, ...]:
        """In bytes."""
        return tuple(path.stat().st_size for path in self.files.values())


def pickled_start(folder: Path) -> str | None:
    """The name of the file that a folder's pickled weights begin at; None where safetensors or an adapter come first.

    As transformers does, one whole file wins over an index.
    """
    if any(os.path.lexists(folder / name) for name in (SINGLE, INDEX, ADAPTER)):
        return None
    return next((name for name in (PICKLED, PICKLED_INDEX) if os.path.lexists(folder / name)), None)


def pickled_files(folder: Path, resolved: Callable[[Path], Path]) -> PickledFiles | None:
    """The pickled weights of a folder; None where `pickled_start` is.

    Args:
        resolved: the plain file behind a folder's entry, or an error for one that may not be read.

    Raises:
        UnsafeFile: a malformed index, or shards that are no bare names; what `resolved` raises.
    """
    start = pickled_start(folder)
    if start is None:
        return None
    if start == PICKLED:
        return PickledFiles({PICKLED: resolved(folder / PICKLED)}, None)
    weight_map = read_index(resolved(folder / start), ".bin")
    return PickledFiles({name: resolved(folder / name) for name in sorted(set(weight_map.values()))}, weight_map)
