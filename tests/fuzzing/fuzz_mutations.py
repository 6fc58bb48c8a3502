"""Inputs with structure: sound JSON with parts replaced, spelled in every way, then damaged as bytes.

Everything random comes from a `Random` that the caller gives: hypothesis's own, which it can shrink, or one of a seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from random import Random
from typing import Any

from fuzz_samples import SAMPLES, TREES, WORDS

_KEYS = sorted({word.decode() for word in WORDS if word.isascii() and word.replace(b"_", b"").isalnum()})
_TEXTS = ("", " ", "a", "a\r\nb", "\ufeff", "\0", "\u2028", "\u202e", "\ud800", "{}", "{} {}", "../a", "x" * 70_000)
_NUMBERS = (0, -1, 1, 1 << 31, 1 << 63, 1 << 64, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf"))


def mutated(rng: Random, target: str) -> bytes:
    """An input for a target: one of its samples, mutated as a tree, as bytes or both, or now and then no sample."""
    if target == "safetensors header" and rng.randrange(2):
        return reheaded(rng, rng.choice(SAMPLES[target]))
    trees = TREES.get(target, [])
    kind = rng.choice(("tree", "tree", "tree", "bytes", "bytes", "value") if trees else ("bytes",))
    if kind == "bytes":
        return damaged(rng, rng.choice(SAMPLES[target]))
    data = spelled(rng, value(rng) if kind == "value" else replaced(rng, rng.choice(trees)))
    return damaged(rng, data) if rng.randrange(4) == 0 else data


def reheaded(rng: Random, data: bytes) -> bytes:
    """A safetensors file with its header mutated as a tree, and the length that goes with it.

    Raises:
        ValueError, RecursionError: its header is no JSON.
    """
    size = 8 + int.from_bytes(data[:8], "little")
    text = json.dumps(replaced(rng, json.loads(data[8:size]), changes=2)).encode()
    return len(text).to_bytes(8, "little") + text + data[size:]


def value(rng: Random, depth: int = 3) -> Any:
    """Any JSON value, and some that JSON has none for."""
    kind = rng.randrange(8 if depth else 6)
    if kind < 2:
        return rng.choice((None, True, False))
    if kind < 4:
        return rng.choice(_NUMBERS)
    if kind < 6:
        return rng.choice((*_TEXTS, chr(rng.randrange(0x110000)), rng.choice(_KEYS)))
    if kind == 6:
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    return {_key(rng): value(rng, depth - 1) for _ in range(rng.randrange(4))}


def _key(rng: Random) -> str:
    return rng.choice(_KEYS) if rng.randrange(4) else chr(rng.randrange(0x110000))


def replaced(rng: Random, tree: Any, changes: int = 3) -> Any:
    """The tree with one or more of its parts replaced, removed, repeated, renamed or wrapped."""
    tree = deepcopy(tree)
    for _ in range(rng.randint(1, changes)):
        places = list(_places(tree))
        if not places:
            return value(rng)
        holder, key = rng.choice(places)
        change = rng.choice(("replace", "replace", "remove", "repeat", "add", "wrap"))
        if change == "replace":
            holder[key] = value(rng)
        elif change == "remove":
            del holder[key]
        elif change == "wrap":
            holder[key] = rng.choice(([holder[key]], {"a": holder[key]}, str(holder[key])[:50]))
        elif isinstance(holder, list):
            holder.insert(key, holder[key] if change == "repeat" else value(rng))
        else:
            holder[_key(rng)] = holder[key] if change == "repeat" else value(rng)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (holder, key) of a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, inner in list(items):
        yield tree, key
        yield from _places(inner)


def spelled(rng: Random, said: Any) -> bytes:
    """One of the many spellings of a JSON value, some of which are none of JSON's."""
    text = json.dumps(said, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, None, 1)))
    if "," in text and rng.randrange(6) == 0:  # a key given twice
        first = text.partition(",")[0].lstrip("{[ \n")
        text = text.replace(",", f", {first},", 1)
    newline = rng.choice(("\n", "\n", "\r\n", "\r"))
    encoding = rng.choice(("utf-8",) * 12 + ("utf-8-sig", "utf-16", "utf-16-be", "utf-32"))
    return text.replace("\n", newline).encode(encoding, "surrogatepass")


def damaged(rng: Random, data: bytes) -> bytes:
    """The bytes with up to four places cut out, doubled, overwritten or filled with a word."""
    blob = bytearray(data)
    for _ in range(rng.randrange(5)):
        start = rng.randint(0, len(blob))
        stop = min(len(blob), start + rng.choice((0, 1, 1, 2, 8, 64, 100_000)))
        change = rng.choice(("word", "word", "random", "cut", "double", "flip"))
        if change == "word":
            blob[start:stop] = rng.choice(WORDS)
        elif change == "random":
            blob[start:stop] = bytes(rng.randrange(256) for _ in range(rng.randrange(5)))
        elif change == "cut":
            del blob[start:stop]
        elif change == "double":
            blob[start:stop] = bytes(blob[start:stop]) * 2
        elif start < len(blob):
            blob[start] ^= 1 << rng.randrange(8)
    return bytes(blob)
