"""Settling on request what a killed command left half done, and saying whether the checkpoint is as it should be."""

from __future__ import annotations

from dataclasses import dataclass, field

from malmen_cli.checkpoint.durable import remove_leftovers
from malmen_cli.checkpoint.manifest import check_checkpoint
from malmen_cli.errors import MalmenError
from malmen_cli.ledger import store
from malmen_cli.ledger.database import Ledger
from malmen_cli.ledger.records import ModelRecord
from malmen_cli.ledger.transactions import Settlement, held_checkpoint, settle


@dataclass(frozen=True, slots=True)
class Recovery:
    """What became of one model.

    Attributes:
        settlement: of an interrupted entry; None where there was none. leftovers: temporary files removed.
        differences: in words, between the checkpoint and the ledger's head afterwards. error: why it was not settled.
    """

    model: ModelRecord
    settlement: Settlement | None = None
    leftovers: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    error: MalmenError | None = None


def recover(ledger: Ledger, model: ModelRecord, command: str, timeout: float = 0) -> Recovery:
    """Settle a model under its checkpoint's lock, waiting at most `timeout` seconds for it.

    Never raises for a model that cannot be settled: one in trouble must not keep the others from their settlement.
    """
    try:
        with held_checkpoint(ledger, model, command, timeout):
            leftovers = remove_leftovers(model.path)
            settlement = settle(ledger, model)
            with ledger.read() as db:
                state = store.state(db, model.id)
            return Recovery(model, settlement, leftovers, check_checkpoint(model.path, model.manifest, state))
    except MalmenError as error:
        return Recovery(model, error=error)
