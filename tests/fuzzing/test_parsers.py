"""R10: whatever the bytes, no reader raises anything but malmen's own errors, and what it accepts is sane.

Covered: every format of facts, safetensors headers, indices, manifests, plans, settings, lock files, sidecars, notes of
training runs, names of entries, text on its way to a terminal. With structure, by hypothesis, here; a million inputs by
coverage with `coverage_guided.py`. Editors: test_editor_files.py. Databases: test_damaged_ledgers.py. Memory:
test_memory_bounds.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import coverage_guided
import fuzz_targets
import pytest
from figures import Figures
from fuzz_counts import Tried
from fuzz_mutations import mutated
from fuzz_samples import SAMPLES, special
from fuzz_targets import PARSERS, Defect
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from malmen_cli.checkpoint import safetensors_file
from malmen_cli.facts import reading

FAST, FULL = 80, 2_000
"""Inputs that hypothesis makes per target, besides the samples and the special ones."""

TITLE = "R10: inputs with structure (hypothesis)"


@pytest.fixture(scope="module")
def totals(figures: Figures) -> Iterator[list[Tried]]:
    tried: list[Tried] = []
    yield tried
    sums = {name: sum(getattr(one, name) for one in tried) for name in ("inputs", "accepted", "uncaught")}
    figures(TITLE, target="total", **sums, seconds=round(sum(one.seconds for one in tried), 1))


def drive(tried: Tried, target: str, examples: int) -> None:
    """The samples, the special inputs and hypothesis's own, into the target."""
    for data in [*SAMPLES[target], *special()]:
        tried(data)

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def run(rng: Random) -> None:
        tried(mutated(rng, target))

    run()


@pytest.mark.parametrize("target", PARSERS)
def test_only_malmens_own_errors_escape(target: str, full: bool, figures: Figures, totals: list[Tried]) -> None:
    tried = Tried(PARSERS[target])
    totals.append(tried)
    try:
        drive(tried, target, FULL if full else FAST)
    finally:
        figures(TITLE, target=target, **tried.row())
    assert tried.accepted > 0, "nothing was accepted: the samples do not fit the reader"
    assert tried.accepted < tried.inputs


# What was found -------------------------------------------------------------------------------------------------------


def with_length(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


FOUND: dict[str, tuple[str, bytes]] = {
    "settings with a key of a thousand dots": ("settings, JSON", b'{"' + b"a." * 1200 + b'b":1}'),
    "settings in tables a thousand deep": ("settings, TOML", b"a." * 1200 + b"b=1"),
    "a lock held by process infinity": (
        "lock file",
        b'{"pid":Infinity,"started":"2026-01-01T00:00:00+00:00","host":1,"command":2}',
    ),
    "a run of a model whose name is a list": ("training note", b'{"model":[1]}'),
    "a sidecar that is too deep to be kept": (
        "sidecar",
        b'{"model":"m","earlier":' + b"[" * 900 + b"1" + b"]" * 900 + b"}",
    ),
    "a plan whose facts are texts": ("saved plan", SAMPLES["saved plan"][0].replace(b'"facts": [', b'"facts": ["a", ')),
    "a shard's name that no file can have": (
        "index of shards",
        b'{"weight_map":{"a":"' + b"x" * 300 + b'.safetensors"}}',
    ),
    "a surrogate in the metadata": ("safetensors header", with_length(b'{"__metadata__":{"a":"\\ud800"}}')),
    "a size of -0": (
        "safetensors header",
        with_length(b'{"a":{"dtype":"U8","shape":[-0],"data_offsets":[0,0]}}'),
    ),
    "sizes over 64 bits, and a 0": (
        "safetensors header",
        with_length(b'{"a":{"dtype":"U8","shape":[9223372036854775807,4,4,0],"data_offsets":[0,0]}}'),
    ),
    "a manifest with a file whose name no file can have": (
        "manifest",
        SAMPLES["manifest"][0].replace(b"tokenizer.json", b"x" * 300 + b".json"),
    ),
    "a manifest with a size that is a text": (
        "manifest",
        SAMPLES["manifest"][0].replace(b'"header_size": ', b'"header_size": -', 1),
    ),
}


@pytest.mark.parametrize("found", FOUND)
def test_what_was_found_stays_mended(found: str) -> None:
    target, data = FOUND[found]
    Tried(PARSERS[target])(data)


# Negative controls ----------------------------------------------------------------------------------------------------


def test_an_error_that_is_not_malmens_own_is_counted() -> None:
    def careless(data: bytes) -> bool:
        return bool(json.loads(data)["prompt"])

    tried = Tried(careless)
    with pytest.raises((ValueError, KeyError, TypeError, RecursionError)):
        drive(tried, "facts, jsonl", 100)
    assert tried.uncaught > 0


BROKEN: dict[str, tuple[object, str, Callable[..., object], str, bytes]] = {
    "negative sizes": (safetensors_file, "_natural", int, *FOUND["a size of -0"]),
    "any metadata": (safetensors_file, "_is_text", lambda value: True, *FOUND["a surrogate in the metadata"]),
    "no escaping": (fuzz_targets, "printable", lambda text, limit=None: text, "shown text", b"\x1b[2J"),
    "repeats": (reading, "_contradiction", lambda *facts: "\x1b", "facts, jsonl", b'{"prompt":"a","target":"b"}\n' * 3),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_reader_that_accepts_or_says_too_much_is_noticed(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, name, instead, target, data = BROKEN[broken]
    PARSERS[target](data)
    monkeypatch.setattr(place, name, instead)
    with pytest.raises(Defect):
        PARSERS[target](data)


# The other driver -----------------------------------------------------------------------------------------------------


def test_coverage_guided(full: bool, figures: Figures, tmp_path: Path) -> None:
    """A million inputs over the parsers."""
    pytest.importorskip("atheris", reason="needs atheris, which the tests' extra does not bring")
    if not full:
        pytest.skip("minutes long; run with --full, or tests/fuzzing/coverage_guided.py")
    runs = [
        coverage_guided.fuzz(target, share, tmp_path / "findings", seed=1)
        for target, share in coverage_guided.shares(list(PARSERS), 1_000_000).items()
    ]
    for run in runs:
        row = {"inputs": run.inputs, "accepted": run.accepted, "uncaught": run.uncaught}
        figures(
            "R10: inputs by coverage (atheris)", target=run.target, **row, peak_MB=run.peak, seconds=round(run.seconds)
        )
    total = {name: sum(getattr(run, name) for run in runs) for name in ("inputs", "accepted", "uncaught")}
    figures("R10: inputs by coverage (atheris)", target="total", **total, peak_MB=max(run.peak for run in runs))
    assert [run for run in runs if run.uncaught or run.ended] == []
    assert total["inputs"] >= 1_000_000


def test_the_command_for_it_says_how_it_is_used() -> None:
    command = [sys.executable, str(Path(coverage_guided.__file__)), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "--inputs" in shown and "--folder" not in shown
