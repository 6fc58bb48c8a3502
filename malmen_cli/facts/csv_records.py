"""The records of a CSV text (RFC 4180), each with the line it starts on: facts in malmen's own format, one a row.

The first row names the columns, in any order and in any case: `prompt` and `target`, and where wanted `subject`,
`rephrases`, `unrelated`, `tags`, `source`. An empty cell is a field left out. How a list stands in one cell:

- `rephrases` and `tags`: one a line (a quoted cell may hold line breaks), or a JSON list of texts;
- `unrelated`: a JSON list of objects, `[{"prompt": ..., "target": ...}]`.

A cell of these that starts with `[` is JSON. Blanks after a comma are no part of the cell unless it is quoted. Cells
are limited to 131,072 characters.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Collection, Iterator

from malmen_cli.errors import BadFacts
from malmen_cli.facts.decoding import UNDECODED, Problems
from malmen_cli.facts.fields import listed
from malmen_cli.facts.json_records import one_value

COLUMNS = ("prompt", "target", "subject", "rephrases", "unrelated", "tags", "source")

_NEEDED = ("prompt", "target")
_LISTS = ("rephrases", "unrelated", "tags")
_FIRST_LINE = re.compile(r"\S[^\r\n]{0,65535}")  # a header is shorter: all of a file that is no CSV may be one line
_NEWLINE = re.compile(r"\r\n|\r|\n")


def is_csv(text: str, *, known: int = 1) -> bool:
    """Whether `text` starts with a header: a row, not of JSON, that names the prompt or the target.

    Args:
        known: how many of the columns there are it must name at least.
    """
    first = _FIRST_LINE.search(text)
    if first is None or text[first.start()] in "{[":
        return False
    rows = (header for _, header in _rows(first[0]) if isinstance(header, list))
    named = {column for header in rows for cell in header if (column := _column(cell)) in COLUMNS}
    return not named.isdisjoint(_NEEDED) and len(named) >= known


def csv_records(
    text: str, problems: Problems, *, needed: Collection[str] = _NEEDED
) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line, fields) for every row below the header; `problems` gets the others. Empty rows are skipped.

    A row that is no CSV is left where its error is found, and reading goes on at the next line. Nothing is read below
    an unusable header.

    Args:
        needed: columns that there must be.
    """
    rows = _rows(text)
    line, header = next(rows, (1, list(_NEEDED)))  # of an empty text there is nothing to say here
    columns = [] if isinstance(header, str) else [_column(cell) for cell in header]
    if wrong := [header] if isinstance(header, str) else list(_wrong_columns(columns, needed)):
        problems.add(line, *(f"{reason}; nothing after it was read" for reason in wrong))
        return
    for line, cells in rows:
        if isinstance(cells, str):
            problems.add(line, cells)
        elif len(cells) != len(columns):
            problems.add(line, f"the header names {len(columns)} columns, this row has {len(cells)}")
        else:
            try:
                row = {name: _value(name, cell) for name, cell in zip(columns, cells, strict=True)}
            except BadFacts as error:
                problems.add(line, *error.problems)
            else:
                yield line, row


def _rows(text: str) -> Iterator[tuple[int, list[str] | str]]:
    """The line that each row starts on, with its cells or with the reason why it has none; empty rows left out."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            why = "a quoted cell is never closed" if str(error) == "unexpected end of data" else error
            end = reader.line_num
            yield line, f"not CSV: {why}" + (f"; lines {line} to {end} were not read" if end > line else "")
        else:
            if any(UNDECODED.search(cell) for cell in cells):
                yield line, "not UTF-8"
            elif any(cell.strip() for cell in cells):
                yield line, cells


def _column(cell: str) -> str:
    return cell.strip().casefold()


def _wrong_columns(columns: list[str], needed: Collection[str]) -> Iterator[str]:
    """What is wrong with a header."""
    if unknown := dict.fromkeys(name for name in columns if name not in COLUMNS):
        yield f"unknown column {listed(unknown)}; known are {', '.join(COLUMNS)}"
    if repeated := [name for name, count in Counter(columns).items() if count > 1 and name in COLUMNS]:
        yield f"column named more than once: {listed(repeated)}"
    if missing := [f"'{name}'" for name in needed if name not in columns]:
        yield f"the header names no column {' and no '.join(missing)}"


def _value(name: str, cell: str) -> object:
    """What a cell holds, as own-format JSON would have it."""
    if not cell.strip():
        return "" if name in _NEEDED else None
    if name not in _LISTS:
        return cell
    if cell.lstrip().startswith("["):
        try:
            return one_value(cell)
        except BadFacts as error:
            raise BadFacts([f"'{name}': {reason}" for reason in error.problems]) from None
    if name == "unrelated":
        raise BadFacts([f"""'{name}' must be a JSON list, [{{"prompt": "...", "target": "..."}}]"""])
    return [item for item in _NEWLINE.split(cell) if item.strip()]
