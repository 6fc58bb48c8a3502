"""What changed between two states of a model: facts, tensors, files. Torch is loaded only for figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from malmen_cli.checkpoint.digests import short
from malmen_cli.errors import MalmenError, UnusableLedger
from malmen_cli.facts import Fact
from malmen_cli.ledger import Entry, FactRef, Ledger, ModelRecord, store
from malmen_cli.ledger.records import FIGURES
from malmen_cli.operations.states import State, TensorBytes

if TYPE_CHECKING:
    from malmen_cli.editing.change import Change


@dataclass(frozen=True)
class TensorDiff:
    """One tensor that differs; where `figures` and `singular_values` are empty, `note` says why."""

    tensor: str
    before: str
    after: str
    figures: dict[str, float] = field(default_factory=dict)
    singular_values: list[float] = field(default_factory=list)
    note: str | None = None

    def as_dict(self) -> dict[str, Any]:
        figures = {name: self.figures.get(name) for name in _FIGURES}
        names = {"tensor": self.tensor, "before": self.before, "after": self.after}
        return {**names, **figures, "singular_values": self.singular_values, "note": self.note}


@dataclass(frozen=True)
class StateDiff:
    """From state `a` to state `b`.

    Attributes:
        superseded: (old, new) facts of one prompt. common: facts active in both. pending: an interrupted entry.
        stored: the tensors' bytes in any state; what had to be solved again is kept for whoever asks next.
    """

    model: ModelRecord
    a: State
    b: State
    added: list[Fact]
    removed: list[Fact]
    superseded: list[tuple[Fact, Fact]]
    common: list[FactRef]
    tensors: list[TensorDiff]
    pending: Entry | None
    stored: TensorBytes

    @property
    def files(self) -> list[str]:
        """What differs besides tensors, in words: files that are not as they were registered."""
        return [*dict.fromkeys([*self.a.remarks, *self.b.remarks])] if self.a.name != self.b.name else []

    @property
    def strange(self) -> list[str]:
        """Tensors of the checkpoint, where it is compared, that no entry has left as they are."""
        return [*dict.fromkeys([*self.a.strange, *self.b.strange])]

    @property
    def differs(self) -> bool:
        return bool(self.tensors or self.files or self.added or self.removed or self.superseded)


_FIGURES = tuple(name for name in FIGURES if name not in ("rounding_loss", "ridge", "step_size", "preserved_strength"))


def diff_states(
    ledger: Ledger, model: ModelRecord, a: State, b: State, *, top: int = 5, device: str = "cpu"
) -> StateDiff:
    """Compare two states. Writes nothing and needs no lock.

    Args:
        top: singular values per tensor. device: where figures are computed, `auto` for the first GPU.

    Raises:
        MalmenError: bytes that the ledger once had are lost.
    """
    facts = _compare_facts(ledger, a, b)
    names = [
        name
        for name in model.manifest.tensors
        if name not in a.unreadable | b.unreadable and a.digest(model, name) != b.digest(model, name)
    ]
    stored = TensorBytes(ledger, model)
    tensors = _Figures(stored, model, top, device).measure(a, b, names) if names else []
    with ledger.read() as db:
        pending = store.pending_entry(db, model.id)
    return StateDiff(model, a, b, *facts, tensors=tensors, pending=pending, stored=stored)


def _compare_facts(
    ledger: Ledger, a: State, b: State
) -> tuple[list[Fact], list[Fact], list[tuple[Fact, Fact]], list[FactRef]]:
    """Added, removed, superseded and common facts, in the order in which they came into effect."""
    added = [fact for prompt, fact in b.facts.items() if prompt not in a.facts]
    removed = [fact for prompt, fact in a.facts.items() if prompt not in b.facts]
    both = [(a.facts[prompt], fact) for prompt, fact in b.facts.items() if prompt in a.facts]
    superseded = [(old, new) for old, new in both if old.edit_digest != new.edit_digest]
    common = [new for old, new in both if old.edit_digest == new.edit_digest]
    with ledger.read() as db:
        refs = [*added, *removed, *(ref for pair in superseded for ref in pair)]
        known = store.facts_with(db, [ref.fact_digest for ref in refs])
    return (
        [_fact(known, ref) for ref in added],
        [_fact(known, ref) for ref in removed],
        [(_fact(known, old), _fact(known, new)) for old, new in superseded],
        common,
    )


def _fact(known: Mapping[str, Fact], ref: FactRef) -> Fact:
    if ref.fact_digest not in known:
        raise UnusableLedger(f"fact {short(ref.fact_digest)} is missing from the ledger", remedy="run malmen verify")
    return known[ref.fact_digest]


class _Figures:
    """Measures tensors one after another."""

    def __init__(self, stored: TensorBytes, model: ModelRecord, top: int, device: str) -> None:
        from malmen_cli.language_models.placement import single_device

        self.model, self.top, self.device = model, top, single_device(device)
        self.bytes = stored

    def measure(self, a: State, b: State, names: Sequence[str]) -> list[TensorDiff]:
        return [self._measure(name, a, b) for name in names]

    def _measure(self, name: str, a: State, b: State) -> TensorDiff:
        from malmen_cli.operations.tensors import DTYPES

        before, after = a.digest(self.model, name), b.digest(self.model, name)
        record = self.model.manifest.tensors[name]
        if record.dtype not in DTYPES:
            return TensorDiff(name, before, after, note=f"no figures: its dtype is {record.dtype}")
        digests = {before, after, record.digest}
        try:
            found = {digest: self.bytes.get(name, digest) for digest in digests}
        except MalmenError as error:  # dropped by gc, or lost: its digests are known all the same
            return TensorDiff(name, before, after, note=f"no figures: {error.message}")
        lost = [where for where, digest in ((a, before), (b, after)) if found[digest] is None]
        if lost or found[record.digest] is None:
            where = lost[0] if lost else "the base"
            note = f"no figures: it was changed behind the ledger's back, and its bytes in {where} were never stored"
            return TensorDiff(name, before, after, note=note)
        change = self._change(name, *(found[digest] or b"" for digest in (before, after, record.digest)))
        if change is None:
            return TensorDiff(name, before, after, note="no figures: it holds numbers that are not finite")
        values = [float(value) for value in change.singular_values[: self.top]]
        figures = {key: value for key, value in change.figures().items() if math.isfinite(value)}
        return TensorDiff(name, before, after, figures, values)

    def _change(self, name: str, *states: bytes) -> Change | None:
        from malmen_cli.editing.change import measure_change
        from malmen_cli.operations.tensors import from_bytes, torch_dtype

        record = self.model.manifest.tensors[name]
        rows = record.shape[0] if len(record.shape) > 1 else 1
        tensors = [
            from_bytes(data, torch_dtype(record.dtype), record.shape).reshape(rows, -1).to(self.device)
            for data in states
        ]
        if not all(bool(tensor.isfinite().all()) for tensor in tensors):
            return None
        return measure_change(*tensors)
