"""Text from strangers: taking it out of a JSON object with every check, and showing it without harm to a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from typing import NoReturn

from malmen_cli.errors import BadFacts
from malmen_cli.facts.decoding import MAX_PROBLEMS

MAX_TEXT_BYTES = 64 * 1024  # of one prompt, target, subject, tag or source, in UTF-8
_LISTED = 5  # names in one problem: a stranger's record may hold a million

# C0 and C1 controls, line separators, bidirectional marks, embeddings, overrides and isolates, lone surrogates.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def printable(text: str, limit: int | None = 60) -> str:
    r"""`text` fit for a terminal: what could move the cursor, reorder or fail to encode is shown as `\xNN` or `\uNNNN`.

    Args:
        limit: most characters to return, the last one then an ellipsis; None for all of it.
    """
    shown = _UNSAFE.sub(_escape, text if limit is None else text[: limit + 1])
    return shown if limit is None or len(shown) <= limit else shown[: max(limit - 1, 0)] + "…"


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def listed(names: Collection[str], prefix: str = "") -> str:
    """Names in quotes, fit for a terminal; all but the first few are only counted."""
    first = ", ".join(f"'{prefix}{printable(name)}'" for name in islice(names, _LISTED))
    return first + (f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else "")


class Fields:
    """The fields of one JSON object, taken out one by one; `check` then raises with everything found wrong.

    What is taken is free of outer white space: on both sides, or with `strip=str.rstrip` on the right alone (prompts,
    whose indent may mean something and whose trailing space would split the target's first token). Where a field is
    wrong its taker notes that and returns a stand-in, so that all the others are looked at too.
    """

    def __init__(
        self,
        row: Mapping[str, object],
        *,
        prefix: str = "",
        problems: list[str] | None = None,
        sparse: bool = False,
    ) -> None:
        """`sparse`: null and blank texts count as left out, as published sets mean them."""
        self.row = {key: value for key, value in row.items() if not _blank(value)} if sparse else row
        self.prefix = prefix  # of field names in problems: "unrelated[2]."
        self.problems: list[str] = [] if problems is None else problems
        self.sparse = sparse

    def over(self, row: Mapping[str, object]) -> Fields:
        """Other fields in the place of these, with the same names and problems."""
        return Fields(row, prefix=self.prefix, problems=self.problems, sparse=self.sparse)

    def only(self, *known: str) -> None:
        """Note every field that is not among `known`: most often one misspelt."""
        if unknown := [key for key in self.row if key not in known]:
            self._note(f"unknown field {listed(unknown, self.prefix)}; known are {', '.join(known)}")

    def text(self, key: str, *, strip: Callable[[str], str] = str.strip) -> str:
        """A text that must be there."""
        return self._checked(key, self.row.get(key, ""), strip)

    def optional(self, key: str, *, strip: Callable[[str], str] = str.strip) -> str | None:
        """A text, or None where the field is left out or null."""
        return None if self.row.get(key) is None else self.text(key, strip=strip)

    def texts(self, key: str, *, strip: Callable[[str], str] = str.strip) -> tuple[str, ...]:
        """A list of texts, repeats left out; empty where the field is left out or null."""
        return tuple(dict.fromkeys(self._checked(f"{key}[{i}]", item, strip) for i, item in enumerate(self._list(key))))

    def all(self, key: str, *, strip: Callable[[str], str] = str.strip) -> tuple[str, ...]:
        """The texts of a field that is a text, a list of them or a list of lists: without blank ones and repeats."""
        return tuple(dict.fromkeys(self._checked(name, item, strip) for name, item in self.leaves(key)))

    def first(self, key: str, *, strip: Callable[[str], str] = str.strip) -> str:
        """The first text of such a field, which must be there; the others are not looked at."""
        name, item = next(self.leaves(key), (key, ""))
        return self._checked(name, item, strip)

    def leaves(self, key: str) -> Iterator[tuple[str, object]]:
        """Name and value of all that is not blank in a field, its list, or the lists in its list."""
        return _leaves(key, self.row.get(key), depth=2)

    def nested(self, key: str) -> Fields:
        """An object, as fields that share these problems; without any where it is left out or null."""
        value = self.row.get(key)
        if value is None or isinstance(value, Mapping):
            return self._inner(key, value or {})
        self.refuse(key, f"must be an object, not {kind(value)}")
        return Fields({})  # with problems of its own: what is not an object need not lack fields too

    def objects(self, key: str) -> Iterator[Fields]:
        """A list of objects, each as fields that share these problems; none where the field is left out or null."""
        for i, item in enumerate(self._list(key)):
            if isinstance(item, Mapping):
                yield self._inner(f"{key}[{i}]", item)
            else:
                self.refuse(f"{key}[{i}]", f"must be an object, not {kind(item)}")

    def refuse(self, key: str, reason: str) -> None:
        """Note what is wrong with a field."""
        self._note(f"'{self.prefix}{printable(key)}' {reason}")

    def check(self) -> None:
        """Raises BadFacts with one problem per thing wrong, if anything is."""
        if self.problems:
            raise BadFacts(self.problems)

    def _note(self, problem: str) -> None:
        """Up to one more than a file may have: that there are more is then said of the file."""
        if len(self.problems) <= MAX_PROBLEMS:
            self.problems.append(problem)

    def _inner(self, name: str, row: Mapping[str, object]) -> Fields:
        return Fields(row, prefix=f"{self.prefix}{printable(name)}.", problems=self.problems, sparse=self.sparse)

    def _list(self, key: str) -> list[object]:
        value = self.row.get(key)
        if value is None or isinstance(value, list):
            return value or []
        self.refuse(key, f"must be a list, not {kind(value)}")
        return []

    def _checked(self, key: str, value: object, strip: Callable[[str], str]) -> str:
        if not isinstance(value, str):
            self.refuse(key, f"must be text, not {kind(value)}")
            return ""
        text = strip(value)
        if not text:
            self.refuse(key, "is missing or empty")
        if "\0" in text:
            self.refuse(key, "holds a NUL character")
        if _SURROGATE.search(text):
            self.refuse(key, "holds half of a surrogate pair, which is not a character")
        if (size := len(text.encode("utf-8", "surrogatepass"))) > MAX_TEXT_BYTES:
            self.refuse(key, f"is {size:,} bytes long, at most {MAX_TEXT_BYTES:,} are allowed")
        return text


def _blank(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _leaves(name: str, value: object, depth: int) -> Iterator[tuple[str, object]]:
    if isinstance(value, list) and depth:
        for i, item in enumerate(value):
            yield from _leaves(f"{name}[{i}]", item, depth - 1)
    elif not _blank(value):
        yield name, value


def kind(value: object) -> str:
    """What a JSON value is, in words for a problem."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "an object"


def refuse(reason: str) -> NoReturn:
    """Raises BadFacts with this one problem."""
    raise BadFacts([reason])
