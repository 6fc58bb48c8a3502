"""Rows (u, d) of facts: captured once per fact and editor, kept as objects, read back for every later solve."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from malmen_cli.checkpoint.digests import digest_bytes
from malmen_cli.editing.editor import Editor
from malmen_cli.errors import NumericalFailure, VerificationFailed
from malmen_cli.facts import Fact
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.ledger.objects import ObjectStore
from malmen_cli.ledger.records import NewRows, RowSlice, RowSpan

BLOCK = 1024
"""Facts captured before their rows are handed on to the CPU in one piece."""


def capture_rows(
    model: LanguageModel,
    editor: Editor,
    facts: Sequence[Fact],
    *,
    batch_tokens: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[NewRows]:
    """Capture the facts' rows at the base weights and pack them, one safetensors blob per layer, in the facts' order.

    Keys are kept in the model's dtype, value differences in float32.

    Raises:
        NumericalFailure: a row that is not finite, naming the fact. UsageError: a fact too long for the model.
    """
    texts = [model.tokenizing(fact.prompt, fact.target) for fact in facts]
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in facts]
    with torch.no_grad():
        for start in range(0, len(texts), BLOCK):
            for batch, rows in model.capture(texts[start : start + BLOCK], batch_tokens=batch_tokens):
                per_layer = [
                    (keys.cpu().split(counts), editor.value_diffs(i, keys, grads).cpu().split(counts))
                    for i, (keys, grads, counts) in enumerate(
                        zip(rows.keys, rows.value_grads, rows.counts, strict=True)
                    )
                ]
                for place, row in enumerate(batch.rows):
                    found[start + row] = [(keys[place], diffs[place]) for keys, diffs in per_layer]
            progress(min(start + BLOCK, len(texts)), len(texts))
    for fact, layers in zip(facts, found, strict=True):
        if not all(bool(torch.isfinite(u).all() and torch.isfinite(d).all()) for u, d in layers):
            raise NumericalFailure(
                f"the rows of {fact.prompt!r:.80} are not finite",
                remedy="The model overflows on this fact: leave it out.",
            )
    packs = []
    for index, layer in enumerate(model.layers):
        spans, start = [], 0
        for fact, text in zip(facts, texts, strict=True):
            spans.append(RowSpan(fact.edit_digest, start, text.rows(layer.stack)))
            start += text.rows(layer.stack)
        pack = {
            "u": torch.cat([layers[index][0] for layers in found]).contiguous(),
            "d": torch.cat([layers[index][1] for layers in found]).contiguous(),
        }
        packs.append(NewRows(layer.name, save(pack), spans))
    return packs


class RowReader:
    """Stored rows by fact. Packs of one layer stay open until `close_layer`; each is checked against its digest.

    Args:
        objects: where packs lie. fresh: rows that are not stored yet.
    """

    def __init__(self, objects: ObjectStore, fresh: Sequence[NewRows] = ()) -> None:
        self._objects = objects
        self._fresh = {digest_bytes(rows.data): rows.data for rows in fresh}
        self._open: dict[str, Mapping[str, Any]] = {}

    def close_layer(self) -> None:
        self._open.clear()

    def __call__(self, row: RowSlice) -> tuple[Tensor, Tensor]:
        """(u, d) of one fact.

        Raises:
            VerificationFailed: the object is damaged, or shorter than the ledger says.
        """
        try:
            pack = self._open.get(row.object) or self._pack(row.object)
            part = slice(row.start, row.start + row.count)
            keys, value_diffs = pack["u"][part], pack["d"][part]
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise VerificationFailed(
                f"stored rows {row.object[:17]} cannot be read: {error}",
                remedy="`malmen verify` names what is damaged.",
            ) from None
        if len(keys) != row.count or len(value_diffs) != row.count:
            raise VerificationFailed(
                f"stored rows {row.object[:17]} are shorter than the ledger says", remedy="run malmen verify"
            )
        if not all(rows.ndim == 2 and rows.is_floating_point() for rows in (keys, value_diffs)):
            raise VerificationFailed(f"stored rows {row.object[:17]} are no rows of numbers")
        return keys, value_diffs

    def _pack(self, digest: str) -> Mapping[str, Any]:
        if digest in self._fresh:
            pack: Mapping[str, Any] = load(self._fresh[digest])
        else:
            # Slices are read on demand, so that memory does not grow with the facts of earlier entries.
            file = safe_open(str(self._objects.checked_path(digest)), framework="pt")
            pack = {name: file.get_slice(name) for name in ("u", "d")}
        self._open[digest] = pack
        return pack


def slices_of(fresh: Sequence[NewRows]) -> dict[str, dict[str, RowSlice]]:
    """Layer -> edit digest -> where the rows will lie once stored."""
    slices = {}
    for rows in fresh:
        digest = digest_bytes(rows.data)
        slices[rows.layer] = {span.edit_digest: RowSlice(digest, span.start, span.count) for span in rows.spans}
    return slices
