"""What a command will write, and whether the disks take it, before it writes anything."""

from __future__ import annotations

from collections.abc import Iterable

from malmen_cli.checkpoint.durable import FREE_SPACE, TEMPORARY, Need, require_space
from malmen_cli.facts import FactSet
from malmen_cli.ledger.database import Ledger
from malmen_cli.ledger.records import ModelRecord
from malmen_cli.ledger.staged import StagedObject

# Bytes that the database grows by, a little more than was measured. A log of the same size stands beside it meanwhile.
_PER_TRANSACTION, _PER_FACT, _PER_ROW = 96 << 10, 800, 250
_SIDECAR = 1 << 12

_LEFT = " (malmen gc --leftovers drops what killed commands have left)"


def require_room(
    ledger: Ledger,
    model: ModelRecord,
    *,
    changed: Iterable[str] = (),
    objects: Iterable[int] = (),
    facts: FactSet | None = None,
    rows: int = 0,
    text: int = 0,
    staged: Iterable[StagedObject] = (),
) -> None:
    """Refuse an entry, or the settling of one, that does not fit, with what is needed and what is free on each disk.

    Args:
        changed: tensors whose files are written anew, one beside the other. objects: sizes of those to be stored.
        facts: to be recorded. rows: of how many edits at how many layers. text: bytes of anything else recorded.
        staged: objects of this command that lie on the disk already.

    Raises:
        MalmenError: it does not fit; nothing was written.
    """
    files = {model.manifest.tensors[name].file for name in changed}
    largest = max((model.manifest.weights[name].size for name in files), default=0)
    needs = [
        Need(ledger.workspace.objects, tuple(objects), "new tensors and rows"),
        Need(ledger.workspace.root, (2 * database_growth(facts, rows, text),), "the ledger"),
    ]
    if files:
        needs.append(Need(model.path, (largest, _SIDECAR), "a copy of its largest changed file"))
    own = {data.path for data in staged}
    are_left = any(path not in own for path in ledger.workspace.objects.glob(f"{TEMPORARY}*"))
    require_space(needs, f"{FREE_SPACE}{_LEFT}" if are_left else FREE_SPACE)


def database_growth(facts: FactSet | None = None, rows: int = 0, text: int = 0) -> int:
    """Bytes that an entry takes in the database, at most about."""
    said = 0 if facts is None else sum(_PER_FACT + 2 * len(fact.canonical_json().encode()) for fact in facts)
    return _PER_TRANSACTION + said + rows * _PER_ROW + 2 * text
