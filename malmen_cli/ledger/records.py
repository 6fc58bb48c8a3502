"""The ledger's values: what a row of each table is to the rest of the program."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from malmen_cli.checkpoint.digests import digest_json
from malmen_cli.checkpoint.manifest import Manifest
from malmen_cli.checkpoint.patch import TensorChange
from malmen_cli.facts import FactSet
from malmen_cli.ledger.staged import StagedObject

Kind = Literal["register", "apply", "revert", "rebase"]
Status = Literal["pending", "applied"]


@dataclass(frozen=True)
class ModelRecord:
    """A registered model. The manifest is parsed when it is first asked for: `malmen log` never needs it."""

    id: int
    name: str
    path: Path
    base_digest: str
    manifest_json: str = field(repr=False)
    architecture: dict[str, Any]  # the caller's description of the edited layers
    created_at: str

    @cached_property
    def manifest(self) -> Manifest:
        return Manifest.from_json(self.manifest_json)


@dataclass(frozen=True, slots=True)
class EditorRecord:
    """A trained editor, bound to a model's base. Records never change once added: the chain covers them."""

    id: str
    model_id: int
    digest: str
    created_at: str
    per_fact: bool
    config: dict[str, Any]
    scores: dict[str, Any]

    @property
    def record_digest(self) -> str:
        return digest_json([self.id, self.digest, self.per_fact, self.config, self.scores])


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the ledger. `id` is the digest that chains it to `parent`; `target` is what a revert points at."""

    id: str
    model_id: int
    number: int
    kind: Kind
    status: Status
    parent: str | None
    fact_set_digest: str | None
    target: str | None
    editor_id: str | None
    active_digest: str
    source: str | None  # the file the facts came from
    created_at: str  # ISO 8601, UTC
    command: str
    details: dict[str, Any]  # resolved configuration, versions, figures


@dataclass(frozen=True, slots=True)
class ParameterDelta:
    """What one entry did to one tensor. Figures that do not apply, or are not finite, are None."""

    tensor: str
    before: str
    after: str
    norm: float | None = None  # Frobenius norm of after minus before
    relative_norm: float | None = None  # over the norm of the base tensor
    largest_change: float | None = None
    effective_rank: float | None = None
    share_moved: float | None = None  # of weights, 0 to 1
    rounding_loss: float | None = None  # relative error that rounding to the checkpoint's dtype cost
    ridge: float | None = None  # lambda
    step_size: float | None = None  # eta
    preserved_strength: float | None = None  # alpha

    def __post_init__(self) -> None:
        for name in FIGURES:
            value = getattr(self, name)
            if value is not None:
                number = float(value)
                object.__setattr__(self, name, number if math.isfinite(number) else None)


FIGURES = tuple(item.name for item in fields(ParameterDelta))[3:]


@dataclass(frozen=True, slots=True)
class RowSpan:
    """The rows of one fact in a pack: `count` rows from row `start`."""

    edit_digest: str
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class RowPack:
    """Rows of one layer as a stored object; the object is a safetensors file with `u` and `d`."""

    editor_id: str
    layer: str
    object: str
    spans: Sequence[RowSpan]


@dataclass(frozen=True, slots=True)
class NewRows:
    """Rows of one layer to be stored: a safetensors file with `u` and `d`, and whose they are."""

    layer: str
    data: StagedObject = field(repr=False)
    spans: Sequence[RowSpan]


@dataclass(frozen=True, slots=True)
class RowSlice:
    """Where the stored rows of one fact at one layer lie: `count` rows from `start` in the object's tensors."""

    object: str
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class EntryDraft:
    """An entry as an operation proposes it; `commit_entry` makes it the ledger's.

    `changes` lists every tensor that the entry sets; one whose bytes stay the same is recorded and not written.
    `deltas` may leave out tensors that it has no figures for. `editor_id` is the editor in force, of a revert too.
    """

    model: ModelRecord
    kind: Kind
    active_digest: str
    changes: Sequence[TensorChange]
    fact_set: FactSet | None = None  # of a revert: the facts it takes out of its target
    target: str | None = None
    editor_id: str | None = None
    deltas: Sequence[ParameterDelta] = ()
    new_rows: Sequence[NewRows] = ()
    command: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
