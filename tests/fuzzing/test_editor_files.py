"""R10: editors, states of trainings and stored rows from strangers: refused in words, or usable."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from editor_targets import EDITOR_TARGETS, samples
from figures import Figures
from fuzz_counts import Tried
from fuzz_mutations import damaged, replaced, spelled, value
from fuzz_samples import special

FAST, FULL = 120, 5_000
TITLE = "R10: editors, states of trainings, stored rows (seeded mutations)"


def mutated(rng: Random, sample: bytes) -> bytes:
    """The file with its JSON mutated as a tree (of safetensors: its header, the tensors' bytes left as they are), or
    with damaged bytes, or with numbers that are none among its tensors."""
    kind = rng.choice(("tree", "tree", "tree", "bytes", "numbers"))
    is_json = sample.startswith(b"{")
    if kind == "bytes":
        return damaged(rng, sample)
    if is_json:
        return spelled(rng, _somewhere(rng, json.loads(sample)))
    size = 8 + int.from_bytes(sample[:8], "little")
    if kind == "numbers":
        at = rng.randrange(size, len(sample))
        word = rng.choice((b"\xff" * 8, b"\0\0\xc0\x7f" * 2, b"\0\0\x80\x7f", b"\0" * 64, b"\0\0\0\0\0\0\xf0\xff"))
        return sample[:at] + word + sample[at + len(word) :]
    header = json.loads(sample[8:size])
    if "__metadata__" in header and rng.randrange(3) == 0:
        progress = json.loads(header["__metadata__"]["progress"])
        header["__metadata__"]["progress"] = json.dumps(replaced(rng, progress))
    elif rng.randrange(2):
        header = _renamed(rng, header)
    else:
        header = _somewhere(rng, header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + sample[size:]


def _renamed(rng: Random, header: dict[str, Any]) -> dict[str, Any]:
    """Shapes and types that still fit the bytes, and names that belong to others."""
    name = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[name]
    change = rng.choice(("dtype", "shape", "name", "zero"))
    if change == "dtype":
        same = {"F32": ("I32", "U32"), "F64": ("I64", "U64", "C64"), "I64": ("F64", "U64"), "F16": ("BF16", "I16")}
        entry["dtype"] = rng.choice(same.get(entry["dtype"], ("U8",)))
    elif change == "shape":
        entry["shape"] = rng.choice((entry["shape"][::-1], [*entry["shape"], 1], [1, *entry["shape"]], []))
    elif change == "zero":
        header["more"] = {"dtype": rng.choice(("F32", "F4", "F8_E8M0", "C64")), "shape": [0, 1 << 62]} | {
            "data_offsets": [0, 0]
        }
    else:
        other = rng.choice(list(header))
        header[name], header[other] = header[other], entry
    return header


def _somewhere(rng: Random, tree: Any) -> Any:
    return value(rng) if rng.randrange(20) == 0 else replaced(rng, tree)


@pytest.mark.parametrize("target", EDITOR_TARGETS)
def test_only_malmens_own_errors_escape(target: str, full: bool, figures: Figures) -> None:
    tried = Tried(EDITOR_TARGETS[target])
    try:
        for data in (samples()[target], *special()):
            tried(data)
        assert tried.accepted > 0
        for seed in range(FULL if full else FAST):
            tried(mutated(Random(seed), samples()[target]))
    finally:
        figures(TITLE, target=target, **tried.row())
    assert tried.accepted < tried.inputs
