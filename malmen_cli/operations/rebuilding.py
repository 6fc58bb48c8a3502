"""Any state of the ledger from the base and the objects alone: stored where it is kept, else solved from its rows."""

from __future__ import annotations

import sqlite3
from typing import Any

from malmen_cli.checkpoint.digests import digest_bytes
from malmen_cli.errors import VerificationFailed
from malmen_cli.ledger import Entry, Ledger, ModelRecord, active_facts, store
from malmen_cli.operations.environment import as_it_was
from malmen_cli.operations.workbench import Workbench


def rebuild(ledger: Ledger, model: ModelRecord, entry: Entry) -> dict[str, bytes]:
    """The bytes of every tensor that was ever edited, as an applied entry left it. Writes nothing.

    Where some of them are no longer stored (gc has dropped them, or they were lost), all are solved again from the base
    and the rows of the facts then in force, on the device and threads of then; the language model is run only where a
    method keeps no rows.

    Raises:
        VerificationFailed: an object that the solve needs is lost or damaged too, or the solve gives other bytes than
            the ledger's digests say (on another device, thread count or version of torch than it was made with).
    """
    with ledger.read() as db:
        state = store.state(db, model.id, entry.number)
        facts = active_facts(store.fold(db, model.id, entry.number))
    try:
        return {tensor: ledger.objects.get(digest) for tensor, digest in state.items()}
    except VerificationFailed:
        if entry.editor_id is None or not facts:  # the base, of which there is nothing to solve
            raise
    with ledger.read() as db:
        editor = store.editor(db, entry.editor_id)
        details = _made_with(db, model, entry)
    with as_it_was(details) as device:
        bench = Workbench(ledger, model, editor, facts, device=device)
        bench.state = {}  # figures of a change are not wanted, and bytes of the head may be lost too
        solved = bench.solve()
    data_of = {change.name: change.data for change in solved.changes}
    found = {}
    for tensor, digest in state.items():
        base = model.manifest.tensors[tensor].digest
        data = ledger.objects.get(base) if digest == base else data_of.get(tensor, b"")
        if digest_bytes(data) != digest:
            raise VerificationFailed(
                f"{tensor} cannot be rebuilt as entry #{entry.number} left it: the solve gives other bytes",
                remedy="use the malmen, torch, device and threads that malmen show --json names, or run malmen verify",
            )
        found[tensor] = data
    return found


def _made_with(db: sqlite3.Connection, model: ModelRecord, entry: Entry) -> dict[str, Any]:
    """Details of the solve that gave `entry` its bytes: its own, or where it found them stored the last one before."""
    for number in store.numbers_with(db, model.id, entry.active_digest):
        details = store.resolve_entry(db, f"#{number}", model.id).details
        if number <= entry.number and "threads" in details:
            return details
    return entry.details
