"""The hash chain: an entry's id is the digest of everything it says and of its parent's id.

Whatever is changed in an entry, its deltas, its rows or its editor's record changes its id, and with it every later
one. The status is outside the chain: it moves from pending to applied.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from malmen_cli.checkpoint.digests import digest_json
from malmen_cli.ledger.records import Entry, ParameterDelta, RowPack

FORMAT = 1  # of the fields below


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
        "rows": sorted(map(_pack, packs)),
    }
    return digest_json(said)


def _pack(pack: RowPack) -> tuple[str, str, list[tuple[str, int, int]]]:
    spans = sorted((span.edit_digest, span.start, span.count) for span in pack.spans)
    return pack.layer, pack.object, spans
