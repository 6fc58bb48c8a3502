"""The hash chain: an entry's id is the digest of everything it says and of its parent's id.

Whatever is changed in an entry, its deltas, its rows or its editor's record changes its id, and with it every later
one. The status is outside the chain: it moves from pending to applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from hashlib import sha256

from malmen_cli.checkpoint.digests import canonical_json, tag
from malmen_cli.ledger.records import Entry, ParameterDelta, RowPack

FORMAT = 1  # of the fields below
SPANS = 1024  # written out at a time


def entry_digest(
    entry: Entry,
    *,
    base_digest: str,
    editor_record: str | None,
    deltas: Iterable[ParameterDelta],
    packs: Iterable[RowPack],
) -> str:
    """The id of `entry` (its own `id`, `model_id`, `editor_id` and `status` play no part).

    `base_digest` is the model's, `editor_record` the digest of the editor's record. The order of deltas and packs does
    not matter.
    """
    said = {
        "format": FORMAT,
        "base": base_digest,
        "parent": entry.parent,
        "number": entry.number,
        "kind": entry.kind,
        "fact_set": entry.fact_set_digest,
        "target": entry.target,
        "editor": editor_record,
        "active": entry.active_digest,
        "source": entry.source,
        "created_at": entry.created_at,
        "command": entry.command,
        "details": entry.details,
        "deltas": sorted((asdict(delta) for delta in deltas), key=lambda delta: str(delta["tensor"])),
    }
    # The canonical JSON of all this with the packs among it as "rows", in pieces: spans come by the ten thousand.
    hasher = sha256()
    first, last = ({key: said[key] for key in said if (key < "rows") == is_first} for is_first in (True, False))
    hasher.update(f'{canonical_json(first)[:-1]},"rows":['.encode())
    for piece in _pieces(packs):
        hasher.update(piece.encode())
    hasher.update(f"],{canonical_json(last)[1:]}".encode())
    return tag(hasher.hexdigest())


def _pieces(packs: Iterable[RowPack]) -> Iterator[str]:
    """The list of packs, each as its layer, its object and its spans in order, without the outermost brackets."""
    for place, pack in enumerate(sorted(packs, key=lambda pack: (pack.layer, pack.object))):
        yield f"{',' if place else ''}{canonical_json([pack.layer, pack.object])[:-1]},["
        spans = sorted((span.edit_digest, span.start, span.count) for span in pack.spans)
        for start in range(0, len(spans), SPANS):
            yield f"{',' if start else ''}{canonical_json(spans[start : start + SPANS])[1:-1]}"
        yield "]]"
