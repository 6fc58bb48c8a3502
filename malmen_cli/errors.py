"""The one tree of errors: every class carries an exit code, every instance a remedy.

The core raises these; only `malmen_cli.cli` catches them and turns them into words on stderr and an exit status.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """Exit statuses that scripts may rely on."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    FACTS_FAILED_CHECK = 3
    DIFFERS = 4
    NO_WORKSPACE = 10
    LOCKED = 11
    VERIFICATION_FAILED = 12
    WRONG_BASE = 13
    REFUSED_BY_GATE = 14
    INTERRUPTED = 130


class MalmenError(Exception):
    """Something the user can act on: what is wrong, and what to do about it."""

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class UsageError(MalmenError):
    """The command cannot mean anything sensible as it was given."""

    exit_code = ExitCode.USAGE


class BadFacts(UsageError):
    """A fact file has unusable lines; `problems` names every one of them as `file:line: reason`.

    Of facts that a model cannot take, the message says so, and problems name their prompts. Where there are too many to
    be kept, `more` is the number of those that are not named.
    """

    def __init__(
        self, problems: Sequence[str], message: str | None = None, *, remedy: str | None = None, more: int = 0
    ) -> None:
        lines = len(problems) + more
        said = f"{lines:,} problem{'s' if lines != 1 else ''} in the fact file, nothing was written"
        super().__init__(message or said, remedy=remedy)
        self.problems = (*problems, *([f"... and {more:,} more"] if more else []))


class UnknownName(UsageError):
    """A model, editor, entry, fact or split that does not exist, or an abbreviation that fits several."""


class UnsupportedModel(UsageError):
    """A model, layer or file layout that malmen cannot edit."""


class UnsafeFile(UsageError):
    """A file that must not be read or written: malformed, a link, a path where a bare name is due, not finite."""


class NoWorkspace(MalmenError):
    exit_code = ExitCode.NO_WORKSPACE


class UnusableLedger(MalmenError):
    """The ledger's database is damaged, or of another schema than this program's."""


class OutdatedLedger(UnusableLedger):
    """The ledger is sound as far as one can see, but has no schema yet or an older one: `malmen init` upgrades it."""


class Locked(MalmenError):
    """Another process is writing to the checkpoint."""

    exit_code = ExitCode.LOCKED


class VerificationFailed(MalmenError):
    exit_code = ExitCode.VERIFICATION_FAILED


class WrongBase(MalmenError):
    """The checkpoint or editor is not the one the ledger knows."""

    exit_code = ExitCode.WRONG_BASE


def as_sentence(remedy: str) -> str:
    """A remedy, which is not empty, to stand by itself; a command that it begins with stays as it is typed."""
    start = remedy[0] if remedy.startswith("malmen ") else remedy[0].upper()
    return f"{start}{remedy[1:]}{'' if remedy.endswith(('.', '?')) else '.'}"


NOT_OURS = (
    "something else changed the checkpoint: malmen recover --restore puts the edited layers back; take anything else "
    "from a backup, or register a copy as another model"
)
"""The remedy for a checkpoint that is not as the ledger left it."""


class StalePlan(MalmenError):
    """A saved plan was made for another state of the model."""

    exit_code = ExitCode.WRONG_BASE


class RefusedByGate(MalmenError):
    """The edited model is not as good as the caller requires, and was not written.

    Attributes:
        outcome: what the operation found, as it would have returned it.
    """

    exit_code = ExitCode.REFUSED_BY_GATE

    def __init__(self, message: str, *, remedy: str | None = None, outcome: Any = None) -> None:
        super().__init__(message, remedy=remedy)
        self.outcome = outcome


class NumericalFailure(MalmenError):
    """A solve or a training step gave no finite answer."""
