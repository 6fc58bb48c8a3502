"""The model that a command names, registered by its first use, and what people see of that on stderr."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from malmen_cli.cli.options import command_line
from malmen_cli.cli.output import say
from malmen_cli.ledger import PATIENCE, Ledger, ModelRecord


def found_or_registered(
    ledger: Ledger,
    name: str | None,
    *,
    lock_timeout: float,
    fetch: Callable[[str], object] | None = None,
    layers: Sequence[str] | None = None,
) -> ModelRecord:
    """The model, as `malmen_cli.operations.models.find_or_register` has it; a registration is said in words."""
    from malmen_cli.operations.models import find_or_register

    patience = max(lock_timeout, PATIENCE)
    record, registration = find_or_register(ledger, name, command_line(), patience, fetch, layers)
    if registration is not None:
        say(f"Registered {record.path} as {record.name}")
        if registration.warning:
            say(f"warning: {registration.warning}")
        if registration.note:
            say(f"note: {registration.note}")
    return record
