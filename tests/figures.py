"""Figures of the promises: what a harness tried and how often the promise was broken, as a table at the end of a run.

A test calls `figures(...)`; the table is printed in Markdown, so that what a document says can be pasted from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Figures:
    """Rows by title of their table, in the order in which they came."""

    tables: dict[str, list[dict[str, object]]] = field(default_factory=dict)

    def __call__(self, title: str, **row: object) -> None:
        """Add a row to the table of this title; the keywords are its columns."""
        self.tables.setdefault(title, []).append(row)

    def within(self, title: str, law: str, value: float, limit: float) -> None:
        """Assert that a value does not exceed its limit; a row per law keeps the worst value seen, and of how many."""
        rows = self.tables.setdefault(title, [])
        row = next((row for row in rows if row["law"] == law), None)
        if row is None:
            row = {"law": law, "tried": 0, "worst": 0.0}
            rows.append(row)
        row |= {"tried": int(str(row["tried"])) + 1, "worst": max(float(str(row["worst"])), value)}
        assert value <= limit

    def join(self, tables: dict[str, list[dict[str, object]]]) -> None:
        """Take in another process's tables."""
        for title, rows in tables.items():
            own = self.tables.setdefault(title, [])
            laws = {row["law"]: row for row in own if "law" in row}
            for row in rows:
                if (same := laws.get(row.get("law"))) is None:
                    own.append(row)
                else:
                    same["tried"] = int(str(same["tried"])) + int(str(row["tried"]))
                    same["worst"] = max(float(str(same["worst"])), float(str(row["worst"])))

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
