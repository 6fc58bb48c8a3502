"""An ordered list of distinct facts with a digest: at most one fact per prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from malmen_cli.facts.fact import Fact


@dataclass(frozen=True)
class FactSet:
    """Facts in file order, and what reading them merged and dropped."""

    facts: tuple[Fact, ...]
    source: str  # file name, or "-" for standard input
    duplicates: int = 0  # records merged into a kept one, whose edit they repeat
    conflicts_dropped: int = 0  # records dropped by --on-conflict

    @cached_property
    def digest(self) -> str:
        """Identity of the facts and their order, whatever file they came from."""
        hasher = sha256()
        for place, fact in enumerate(self.facts):
            hasher.update(f"{chr(10) if place else ''}{fact.digest}".encode())
        return "sha256:" + hasher.hexdigest()

    def __len__(self) -> int:
        return len(self.facts)

    def __iter__(self) -> Iterator[Fact]:
        return iter(self.facts)
