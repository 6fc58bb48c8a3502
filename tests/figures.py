"""Figures of the promises: what a harness tried and how often the promise was broken, as a table at the end of a run.

A test calls `figures(...)`; the table is printed in Markdown, so that what a document says can be pasted from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Record = Callable[..., None]


@dataclass
class Figures:
    """Rows by title of their table, in the order in which they came."""

    tables: dict[str, list[dict[str, object]]] = field(default_factory=dict)

    def add(self, title: str, **row: object) -> None:
        """Add a row to the table of this title; the keywords are its columns."""
        self.tables.setdefault(title, []).append(row)

    def lines(self) -> list[str]:
        """Every table in Markdown. Rows of one table that lack a column leave it empty."""
        lines: list[str] = []
        for title, rows in self.tables.items():
            columns = list(dict.fromkeys(column for row in rows for column in row))
            head = _row([column.replace("_", " ") for column in columns])
            lines += ["", title, "", head, "|---" * len(columns) + "|"]
            lines += [_row([_cell(row.get(column, "")) for column in columns]) for row in rows]
        return lines


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
