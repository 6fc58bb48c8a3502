"""Files made to cost more memory than their size: a shape is what is repeated, between a beginning and an end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

Part = Callable[[int], bytes]


@dataclass(frozen=True)
class Shape:
    """`begin`, as many parts as the size asks for (each may depend on its number), `end`.

    Attributes:
        reader: what reads it, a key of `READERS` in peak_memory.py. name: of the file.
    """

    reader: str
    name: str
    part: bytes | Part
    begin: bytes = b""
    end: bytes = b""

    def write(self, path: Path, size: int) -> None:
        """Write a file of about `size` bytes; a safetensors file gets the length of its header before it."""
        with path.open("wb") as file:
            if self.reader == "header":
                file.write(bytes(8))
            file.write(self.begin)
            for block in self._blocks(size):
                file.write(block)
            file.write(self.end)
            if self.reader == "header":
                length = file.tell() - 8
                file.seek(0)
                file.write(length.to_bytes(8, "little"))

    def _blocks(self, size: int) -> Iterator[bytes]:
        if isinstance(self.part, bytes):
            count = size // len(self.part)
            whole, block = divmod(count, 65536)
            yield from (self.part * 65536 for _ in range(whole))
            yield self.part * block
            return
        written = number = 0
        while written < size:
            block = b"".join(map(self.part, range(number, number + 4096)))
            written, number = written + len(block), number + 4096
            yield block


def numbered(text: bytes, end: bytes = b"") -> Part:
    """`text` with `%d` in it, the part's number in its place."""
    return lambda number: text.replace(b"%d", b"%d" % number) + end


_TENSOR = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
_LAST_TENSOR = b'"z":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
_PLAN = b'{"malmen_plan":1,"facts":['
INDEX = "model.safetensors.index.json"

SHAPES: dict[str, Shape] = {
    # Facts: broken files
    "lines that are no JSON": Shape("facts", "f.jsonl", b"x\n"),
    "empty objects, a line each": Shape("facts", "f.jsonl", b"{}\n"),
    "empty objects in a list": Shape("facts", "f.json", b"{},", b"[", b"{}]"),
    "empty lines": Shape("facts", "f.jsonl", b"\n"),
    "a list over as many lines": Shape("facts", "f.json", b"\n", b"[", b"{}]"),
    "lists in lists, never closed": Shape("facts", "f.json", b"["),
    "lists in lists, in one line": Shape("facts", "f.jsonl", b'{"a":', b"", b"1"),
    "empty lists in one field": Shape("facts", "f.jsonl", b"[],", b'{"prompt":[', b"[]]}"),
    "fields of one record": Shape("facts", "f.jsonl", numbered(b'"%d":0,'), b"{", b'"":0}'),
    "fields given twice": Shape("facts", "f.jsonl", numbered(b'"%d":0,"%d":0,'), b"{", b'"":0}'),
    "rephrases that are numbers": Shape(
        "facts", "f.jsonl", b"1,", b'{"prompt":"a","target":"b","rephrases":[', b"1]}"
    ),
    "probes that are numbers": Shape(
        "facts", "f.jsonl", b"1,", b'{"prompt":"a","target_new":"b","locality":{"x":[', b"1]}}"
    ),
    "one long text": Shape("facts", "f.jsonl", b"x", b'{"prompt":"', b'","target":"b"}'),
    "one long text, and a wide character": Shape("facts", "f.jsonl", b"x", '{"prompt":"\U0001f600'.encode(), b'"}'),
    "bytes that are not UTF-8": Shape("facts", "f.jsonl", b"\xff"),
    "contradictions": Shape("facts", "f.csv", numbered(b"a,%d\n"), b"prompt,target\n"),
    "one CSV cell": Shape("facts", "f.csv", b"x", b'prompt,target\n"', b'",b\n'),
    "one CSV cell, never closed": Shape("facts", "f.csv", b"x\n", b'prompt,target\n"'),
    "CSV columns": Shape("facts", "f.csv", b",", b"prompt,target", b"\na,b\n"),
    "CSV cells in one row": Shape("facts", "f.csv", b",", b"prompt,target\na,b", b"\n"),
    "CSV rows of one cell": Shape("facts", "f.csv", b"a\n", b"prompt,target\n"),
    # Facts: sound ones
    "small facts": Shape("facts", "f.jsonl", numbered(b'{"prompt":"%d","target":"a"}\n')),
    "small facts, CSV": Shape("facts", "f.csv", numbered(b"%d,a\n"), b"prompt,target\n"),
    "one fact's rephrases": Shape(
        "facts", "f.jsonl", numbered(b'"%d",'), b'{"prompt":"a","target":"b","rephrases":[', b'"c"]}'
    ),
    "repeats, each with a rephrase": Shape(
        "facts", "f.jsonl", numbered(b'{"prompt":"a","target":"b","rephrases":["%d"]}\n')
    ),
    # Headers, indices, plans, settings
    "tensors": Shape("header", "model.safetensors", numbered(_TENSOR), b"{", _LAST_TENSOR),
    "empty lists in a header": Shape("header", "model.safetensors", b"[],", b'{"a":[', b"[]]}"),
    "tensors in an index": Shape("index", INDEX, numbered(b'"%d":"a",'), b'{"weight_map":{', b'"":"a"}}'),
    "empty lists in an index": Shape("index", INDEX, b"[],", b'{"weight_map":[', b"[]]}"),
    "empty lists in a plan": Shape("plan", "plan.json", b"[],", _PLAN, b"[]]}"),
    "facts in a plan": Shape("plan", "plan.json", numbered(b'{"prompt":"%d","target":"a"},'), _PLAN, b"{}]}"),
    "empty lists in settings": Shape("settings", "settings.json", b"[],", b'{"a":[', b"[]]}"),
    "keys in settings, TOML": Shape("settings", "settings.toml", numbered(b"a%d=1\n")),
}  # fmt: skip
