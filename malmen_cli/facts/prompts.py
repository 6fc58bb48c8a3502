"""Prompts alone, such as those whose answers must not change: a text file of them, or every prompt of a fact file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from malmen_cli.errors import BadFacts
from malmen_cli.facts.csv_records import csv_records, is_csv
from malmen_cli.facts.decoding import UNDECODED, Problems, decoded, encodable, why_no_text
from malmen_cli.facts.fields import Fields, printable, refuse
from malmen_cli.facts.formats import fact_from_row, with_any_targets
from malmen_cli.facts.json_records import json_records
from malmen_cli.facts.reading import file_bytes, named_csv

_JSON = re.compile(r"""\s*(?:\{\s*["']|\[\s*[{"\]])""")  # a text may begin with [INST] or {name}
_LINE_END = re.compile("\r\n?|\n")
_HEADER = 2  # columns of a table of another name than .csv: a text may begin with the word Target and a comma

_LAYOUT = "one prompt a line, or a fact file, whose targets may be left out"


@dataclass(frozen=True)
class Prompts:
    """Distinct prompts in file order, and the names of the files."""

    texts: tuple[str, ...]
    source: str

    @property
    def digest(self) -> str:
        """Identity of the prompts and their order, whatever files they came from."""
        hasher = sha256()
        for text in self.texts:
            hasher.update(f"{len(text)}:{text}".encode())
        return "sha256:" + hasher.hexdigest()

    def __len__(self) -> int:
        return len(self.texts)


def read_prompts(paths: Iterable[Path | Literal["-"]]) -> Prompts:
    """Read files of prompts, UTF-8, a byte-order mark allowed: each either plain text or facts.

    Plain text is one prompt a line; blank lines are skipped, and white space at a line's end is no part of the prompt.
    It is what neither begins as JSON does nor with the names of two columns (one, where the file is named .csv).
    A file of facts is in any format that `read_fact_set` knows: of every record the prompt, its rephrases and its
    unrelated prompts are taken, targets are not looked at and may be missing (of KnowEdit's probes those without an
    answer are left out); in a JSON list a text is a prompt.

    Raises:
        UsageError: there is no such file, or it cannot be read.
        BadFacts: with every problem as `file:line: reason`, also for a file without prompts.
    """
    found: dict[str, None] = {}
    names, lines = [], []
    more = 0
    for path in paths:
        name = printable(str(path), limit=None)
        names.append(path if isinstance(path, str) else encodable(path.name))
        problems = Problems()
        data = file_bytes(path)
        if (why := why_no_text(data)) is not None:
            problems.add(1, why)
            data = b""
        prompts = dict.fromkeys(_prompts(decoded(data), 1 if named_csv(path) else _HEADER, problems))
        if not problems and not prompts:
            problems.add(1, "no prompts in this file")
        found |= prompts
        lines += [f"{name}:{line}: {reason}" for line, reason in sorted(problems.named, key=lambda x: x[0])]
        more += problems.more
    if lines:
        raise BadFacts(lines, remedy=f"Give {_LAYOUT}.", more=more)
    return Prompts(tuple(found), ", ".join(names))


def _prompts(text: str, columns: int, problems: Problems) -> Iterator[str]:
    if _JSON.match(text):
        records: Iterator[tuple[int, object]] = json_records(text, problems)
    elif is_csv(text, known=columns):
        records = csv_records(text, problems, needed=("prompt",))
    else:
        records = _lines(text, problems)
    for line, row in records:
        try:
            yield from _of_record(row)
        except BadFacts as error:
            problems.add(line, *error.problems)


def _lines(text: str, problems: Problems) -> Iterator[tuple[int, object]]:
    for line, prompt in enumerate(_LINE_END.split(text), start=1):
        if UNDECODED.search(prompt):
            problems.add(line, "not UTF-8")
        elif prompt.strip():
            yield line, prompt


def _of_record(row: object) -> Iterator[str]:
    if isinstance(row, str):
        fields = Fields({"prompt": row})
        prompt = fields.text("prompt", strip=str.rstrip)
        fields.check()
        yield prompt
        return
    if not isinstance(row, Mapping):
        refuse("neither a prompt nor a fact")
    fact = fact_from_row(with_any_targets(row))
    yield fact.prompt
    yield from fact.rephrases
    yield from (other.prompt for other in fact.unrelated)
