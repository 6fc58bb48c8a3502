"""What a verification finds: problems with their places, and a count of what was looked at."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from malmen_cli.errors import Locked, MalmenError


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it should be: where, and what about it."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(slots=True)
class Verification:
    """Problems found, and how many things of each kind were looked at.

    Attributes:
        anchor: one digest over what is sealed; None where the database could not be read so far.
    """

    problems: list[Problem] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)
    anchor: str | None = None

    def report(self, where: str, what: str) -> None:
        self.problems.append(Problem(where, what))

    def expect(self, holds: bool, where: str, what: str) -> None:
        if not holds:
            self.report(where, what)

    def attempt(self, where: str, check: Callable[..., None], *arguments: Any) -> None:
        """Run a check; whatever damage makes it raise is a problem at `where`. Another's lock is not damage."""
        try:
            check(*arguments)
        except Locked:
            raise
        except MalmenError as error:
            self.report(where, error.message)
        except Exception as error:  # damage has no end of forms, and verify must get to the end of its list
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            self.report(where, f"cannot be read ({type(error).__name__}: {error})")
