"""Any state of the ledger from the base and the objects alone: stored where it is kept, else solved from its rows."""

from __future__ import annotations

from malmen_cli.checkpoint.digests import digest_bytes
from malmen_cli.errors import VerificationFailed
from malmen_cli.ledger import Entry, Ledger, ModelRecord, active_facts, store
from malmen_cli.operations.workbench import Workbench


def rebuild(ledger: Ledger, model: ModelRecord, entry: Entry) -> dict[str, bytes]:
    """The bytes of every tensor that was ever edited, as an applied entry left it. Writes nothing.

    Where gc has dropped some of them, all are solved again from the base and the rows of the facts then in force,
    without the language model.

    Raises:
        VerificationFailed: an object is lost or damaged, or the solve gives other bytes than the ledger's digests say
            (on another device, thread count or version of torch than it was made with).
    """
    with ledger.read() as db:
        state = store.state(db, model.id, entry.number)
        facts = active_facts(store.fold(db, model.id, entry.number))
        dropped = store.dropped_objects(db, state.values())
    if not dropped:
        try:
            return {tensor: ledger.objects.get(digest) for tensor, digest in state.items()}
        except VerificationFailed:
            with ledger.read() as db:
                if not store.dropped_objects(db, state.values()):
                    raise
            # gc has dropped some of them since we asked.
    assert entry.editor_id is not None  # without facts in force a state is the base, which is never dropped
    with ledger.read() as db:
        editor = store.editor(db, entry.editor_id)
    solved = {change.name: change.data for change in Workbench(ledger, model, editor, facts).solve().changes}
    found = {}
    for tensor, digest in state.items():
        base = model.manifest.tensors[tensor].digest
        data = ledger.objects.get(base) if digest == base else solved.get(tensor, b"")
        if digest_bytes(data) != digest:
            raise VerificationFailed(
                f"{tensor} cannot be rebuilt as entry #{entry.number} left it: the solve gives other bytes",
                remedy="use the device, threads and torch that malmen show --json names (of an apply or a rebase), or "
                "run malmen verify",
            )
        found[tensor] = data
    return found
