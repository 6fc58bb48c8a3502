"""The records of a JSON Lines or JSON array text, each with its line, however broken the text is."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator

from malmen_cli.errors import BadFacts
from malmen_cli.facts.decoding import UNDECODED, Problems
from malmen_cli.facts.fields import listed, refuse

_SPACE = re.compile(r"[ \t\r\n]*")  # JSON's own; str.strip() would eat more


def json_records(text: str, problems: Problems) -> Iterator[tuple[int, object]]:
    """Yield (line, value) for every record of `text`; `problems` gets the others.

    In JSON Lines every line stands alone and blank ones are skipped. An array (the first character is `[`) may be
    spread over lines in any way; its records carry the line they start on, and nothing is read after a syntax error.
    """
    start = _skip_space(text, 0)
    return _array(text, start + 1, problems) if text[start : start + 1] == "[" else _lines(text, problems)


def one_value(text: str) -> object:
    """The value of a JSON text that stands alone.

    Raises:
        BadFacts: with the one reason why it is none.
    """
    return _value(_Decoder(), text)


def _value(decoder: _Decoder, text: str) -> object:
    if UNDECODED.search(text):
        refuse("not UTF-8")
    try:
        value, end = decoder.take(text, _skip_space(text, 0))
    except _BROKEN as error:
        raise BadFacts([_reason(error)]) from None
    if _skip_space(text, end) < len(text):
        refuse(f"not JSON: more after the end of the record (column {end + 1})")
    if decoder.repeated:
        refuse(f"given more than once: {listed(decoder.repeated)}")
    return value


def _lines(text: str, problems: Problems) -> Iterator[tuple[int, object]]:
    decoder = _Decoder()
    for line, record in enumerate(_split(text), start=1):
        if not record.strip(" \t\r"):
            continue
        try:
            yield line, _value(decoder, record)
        except BadFacts as error:
            problems.add(line, *error.problems)


def _split(text: str) -> Iterator[str]:
    """The lines one by one. Not splitlines: U+2028 may stand inside a JSON text; nor split: they may be millions."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def _array(text: str, position: int, problems: Problems) -> Iterator[tuple[int, object]]:
    decoder = _Decoder()
    line_at = _LineCounter(text)
    start = _skip_space(text, position)
    ending = text[start : start + 1] == "]"
    end = start
    while not ending:
        try:
            value, end = decoder.take(text, start)
        except _BROKEN as error:
            index = error.pos if isinstance(error, json.JSONDecodeError) else start
            problems.add(line_at(index), f"{_reason(error)}; nothing after it was read")
            return
        if undecoded := UNDECODED.search(text, start, end):
            problems.add(line_at(undecoded.start()), "not UTF-8")
        elif decoder.repeated:
            problems.add(line_at(start), f"given more than once: {listed(decoder.repeated)}")
        else:
            yield line_at(start), value
        end = _skip_space(text, end)
        ending = text[end : end + 1] == "]"
        if not ending and text[end : end + 1] != ",":
            problems.add(line_at(end), "not JSON: ',' or ']' must follow a record; nothing after it was read")
            return
        start = _skip_space(text, end + 1)
    after = _skip_space(text, end + 1)
    if after < len(text):
        problems.add(line_at(after), "not JSON: more after the end of the list")


class _LineCounter:
    """The line of an index in a text, counted on from the last one that was asked for; asked in ascending order."""

    def __init__(self, text: str) -> None:
        self.text, self.index, self.line = text, 0, 1

    def __call__(self, index: int) -> int:
        self.line += self.text.count("\n", self.index, index)
        self.index = index
        return self.line


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


_BROKEN = (json.JSONDecodeError, RecursionError)


def _reason(error: json.JSONDecodeError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "not a fact: nested too deeply"
    if UNDECODED.match(error.doc, error.pos):
        return "not UTF-8"
    return f"not JSON: {error.msg} (column {error.colno})"


class _Decoder(json.JSONDecoder):
    """Python's decoder, which keeps silent about repeated keys and fails on numbers of more than 4,300 digits."""

    def __init__(self) -> None:
        self.repeated: list[str] = []  # keys that the last record taken gives more than once in one object
        super().__init__(object_pairs_hook=self._object, parse_int=lambda n: int(n) if len(n) < 20 else float(n))

    def take(self, text: str, start: int) -> tuple[object, int]:
        """The value at `start`, and the index after it; raises JSONDecodeError or RecursionError."""
        self.repeated = []
        return self.raw_decode(text, start)

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        fields = dict(pairs)
        if len(fields) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            self.repeated += [key for key, count in counts.items() if count > 1]
        return fields
