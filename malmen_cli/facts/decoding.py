"""A fact file's bytes as text, whatever they are, and what there is to say of a line."""

from __future__ import annotations

import codecs
import re

MAX_PROBLEMS = 10_000  # that are named of one file or one record; nobody corrects more by hand, and memory is bounded

Problem = tuple[int, str]  # line, reason

# How `decoded` shows bytes that are not UTF-8.
UNDECODED = re.compile("[\udc80-\udcff]")


class Problems:
    """What is wrong with a file, in the order it is found: the first `MAX_PROBLEMS` by line, the others counted."""

    def __init__(self) -> None:
        self.named: list[Problem] = []
        self.more = 0

    def add(self, line: int, *reasons: str) -> None:
        """Note what is wrong at a line."""
        room = MAX_PROBLEMS - len(self.named)
        self.named += [(line, reason) for reason in reasons[:room]]
        self.more += max(0, len(reasons) - room)

    def __len__(self) -> int:
        return len(self.named) + self.more


def why_no_text(data: bytes) -> str | None:
    """What these bytes are in the place of a text in UTF-8, or None: weights, pictures and archives begin with NUL
    bytes, and what PowerShell writes with UTF-16's mark."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "not UTF-8 but UTF-16: save it as UTF-8"
    if b"\0" in data[:1024] and UNDECODED.search(decoded(data)) is not None:
        return "not a text file"
    return None


def decoded(data: bytes) -> str:
    """The text of `data`, without its byte-order mark; where it is not UTF-8 the text matches `UNDECODED`."""
    return data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def encodable(text: str) -> str:
    """A file's name or a command line may hold bytes that are not UTF-8; what is stored or digested must not."""
    return text.encode(errors="backslashreplace").decode()
