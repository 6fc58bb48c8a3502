"""From a fact file to a fact set: every problem gathered, repeats merged, one target per prompt."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import AnyStr, Literal, TextIO

from malmen_cli.errors import BadFacts, UsageError
from malmen_cli.facts.csv_records import csv_records, is_csv
from malmen_cli.facts.decoding import Problems, decoded, encodable, why_no_text
from malmen_cli.facts.fact import Fact, Unrelated
from malmen_cli.facts.fact_set import FactSet
from malmen_cli.facts.fields import printable
from malmen_cli.facts.formats import FactFormat, fact_from_row
from malmen_cli.facts.json_records import json_records

OnConflict = Literal["first", "last"]

MOST = 1 << 30
"""Bytes of a fact file, which is read as a whole: millions of facts."""

_LAYOUT = 'one JSON object per line, at least {"prompt": "...", "target": "..."}'


_TABLE = "a table's first line names its columns, at least prompt,target, and commas separate them"


def read_fact_set(
    path: Path | Literal["-"],
    *,
    on_conflict: OnConflict | None = None,
    format: FactFormat | None = None,
    stdin: TextIO | None = None,
) -> FactSet:
    """Read JSON Lines, a JSON array or CSV: UTF-8, a byte-order mark allowed.

    The JSON records may be in any known format (`formats/table.py`), mixed or not; a file is CSV if its first line is
    a header (`csv_records.py`).

    Records with the same prompt and target are one edit: the first is kept, with the rephrases, unrelated prompts and
    tags of the others added. Records with the same prompt and another target, or another subject, contradict each
    other.

    Args:
        path: the file, or "-" for `stdin` (by default the process's own).
        on_conflict: of records that contradict each other keep the first or the last; None makes them problems.
        format: the one format the file is in, so that records of others are problems; None for whatever is found.

    Raises:
        UsageError: there is no such file, or it cannot be read.
        BadFacts: with every problem as `file:line: reason`, in line order (of a file with more than `MAX_PROBLEMS`,
            the others counted); also for a file without facts.
    """
    name = printable(str(path), limit=None)
    problems = Problems()
    merging = _Merging(on_conflict, problems)
    data = file_bytes(path, stdin)
    if (why := why_no_text(data)) is not None:
        raise BadFacts([f"{name}:1: {why}"], remedy=f"Give it {_LAYOUT}.")
    text = decoded(data)
    if format is None and (is_csv(text) or (named_csv(path) and not text.lstrip().startswith(("{", "[")))):
        format = "csv"
    for line, row in csv_records(text, problems) if format == "csv" else json_records(text, problems):
        try:
            fact = fact_from_row(row, format)
        except BadFacts as error:
            problems.add(line, *error.problems)
        else:
            merging.add(line, fact)

    if problems:
        advice = []
        if len(problems) > merging.contradictions:
            layout = _TABLE if format == "csv" else f"malmen's own format is {_LAYOUT}"
            advice.append(f"Correct these lines; {layout}.")
        if merging.contradictions:
            advice.append("Of contradicting lines remove all but one, or choose with --on-conflict first|last.")
        named = sorted(problems.named, key=lambda problem: problem[0])
        lines = [f"{name}:{line}: {reason}" for line, reason in named]
        raise BadFacts(lines, remedy=" ".join(advice), more=problems.more)
    if not merging.kept:
        remedy = f"Give it rows; {_TABLE}." if format == "csv" else f"Give it {_LAYOUT}."
        raise BadFacts([f"{name}:1: no facts in this file"], remedy=remedy)
    facts = tuple(kept.whole() for kept in merging.kept.values())
    source = path if isinstance(path, str) else encodable(path.name)
    return FactSet(facts, source, merging.duplicates, merging.conflicts_dropped)


def named_csv(path: Path | Literal["-"]) -> bool:
    """Whether the file's name says that it is CSV."""
    return isinstance(path, Path) and path.suffix.lower() == ".csv"


def file_bytes(path: Path | Literal["-"], stdin: TextIO | None = None) -> bytes:
    """What a file, or standard input, holds. Raises UsageError where it cannot be read, or is larger than `MOST`."""
    if isinstance(path, Path):
        try:
            with path.open("rb") as file:
                return b"".join(_at_most(file.read, path))
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
            why = (isinstance(error, OSError) and error.strerror) or str(error)
            problem = f"cannot read {printable(str(path), limit=None)}: {why}"
            raise UsageError(problem, remedy="Name a readable fact file, or - for standard input.") from error
    stream = sys.stdin if stdin is None else stdin
    try:
        # The bytes beneath, where there are any: the locale's encoding has no say in what a fact file holds.
        if hasattr(stream, "buffer"):
            return b"".join(_at_most(stream.buffer.read, path))
        return "".join(_at_most(stream.read, path)).encode("utf-8", "surrogatepass")
    except (AttributeError, OSError, ValueError) as error:  # no standard input, or a closed one
        raise UsageError("cannot read standard input", remedy="Pipe facts into malmen, or name a fact file.") from error


def _at_most(read: Callable[[int], AnyStr], path: Path | Literal["-"]) -> Iterator[AnyStr]:
    """All that there is to read, in pieces: a buffer for the most that there may be would be taken for every file."""
    left = MOST
    while piece := read(1 << 20):
        left -= len(piece)
        if left < 0:
            what = "standard input" if path == "-" else printable(str(path), limit=None)
            raise UsageError(f"{what} is larger than {MOST >> 30} GiB", remedy="Give the facts in several files.")
        yield piece


@dataclass(slots=True)
class _Kept:
    """A fact with what only its repeats know, and the line that vouches for its target and subject."""

    line: int
    fact: Fact
    # Rephrases, unrelated prompts and tags of fact and repeats together, in order; repeats may be thousands.
    lists: tuple[dict[str, None], dict[Unrelated, None], dict[str, None]] | None = None

    def merge(self, line: int, repeat: Fact) -> None:
        if self.fact.subject is None and repeat.subject is not None:
            self.line, self.fact = line, replace(self.fact, subject=repeat.subject)
        if self.fact.source is None and repeat.source is not None:
            self.fact = replace(self.fact, source=repeat.source)
        if not (repeat.rephrases or repeat.unrelated or repeat.tags):
            return
        if self.lists is None:
            fact = self.fact
            self.lists = dict.fromkeys(fact.rephrases), dict.fromkeys(fact.unrelated), dict.fromkeys(fact.tags)
        rephrases, unrelated, tags = self.lists
        rephrases.update(dict.fromkeys(repeat.rephrases))
        unrelated.update(dict.fromkeys(repeat.unrelated))
        tags.update(dict.fromkeys(repeat.tags))

    def whole(self) -> Fact:
        if self.lists is None:
            return self.fact
        rephrases, unrelated, tags = self.lists
        return replace(self.fact, rephrases=tuple(rephrases), unrelated=tuple(unrelated), tags=tuple(tags))


class _Merging:
    """The facts kept so far, at most one per prompt, and the counts of what was dropped."""

    def __init__(self, on_conflict: OnConflict | None, problems: Problems) -> None:
        self.on_conflict = on_conflict
        self.problems = problems
        self.kept: dict[str, _Kept] = {}  # by prompt
        self.duplicates = self.contradictions = self.conflicts_dropped = 0

    def add(self, line: int, fact: Fact) -> None:
        kept = self.kept.get(fact.prompt)
        if kept is None:
            self.kept[fact.prompt] = _Kept(line, fact)
        elif contradiction := _contradiction(kept.fact, kept.line, fact):
            if self.on_conflict is None:
                self.contradictions += 1
                self.problems.add(line, contradiction)
                return
            self.conflicts_dropped += 1
            if self.on_conflict == "last":
                del self.kept[fact.prompt]  # so that the newcomer takes its own place in the order
                self.kept[fact.prompt] = _Kept(line, fact)
        else:
            self.duplicates += 1
            kept.merge(line, fact)


def _contradiction(kept: Fact, kept_line: int, fact: Fact) -> str | None:
    prompt = printable(fact.prompt)
    if kept.target != fact.target:
        here, there = printable(fact.target), printable(kept.target)
        return f"prompt '{prompt}' has target '{here}' here and '{there}' at line {kept_line}"
    if kept.subject and fact.subject and kept.subject != fact.subject:
        here, there = printable(fact.subject), printable(kept.subject)
        return f"prompt '{prompt}' has subject '{here}' here and '{there}' at line {kept_line}"
    return None
