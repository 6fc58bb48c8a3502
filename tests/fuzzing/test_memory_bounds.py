"""R10: reading a stranger's file takes at most a known multiple of its size, whatever is in it.

Every shape is read in a process of its own, which tells its peak. The bounds are those that the documentation names;
the shapes are the worst that were found, not a proof that there are no worse ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import peak_memory
import pytest
from damaged_ledger import DamagedLedger
from figures import Figures
from ledger_world import FAST as IN_MEMORY
from memory_shapes import SHAPES, Shape

import malmen_cli
from malmen_cli.checkpoint.manifest import LARGEST_INDEX
from malmen_cli.checkpoint.safetensors_file import LARGEST_HEADER
from malmen_cli.config import LARGEST as LARGEST_SETTINGS
from malmen_cli.errors import BadFacts, UsageError
from malmen_cli.facts import read_fact_set
from malmen_cli.facts.decoding import MAX_PROBLEMS
from malmen_cli.ledger import Ledger, store
from malmen_cli.operations import saved_plan
from malmen_cli.operations.active import propose
from malmen_cli.operations.saved_plan import LARGEST as LARGEST_PLAN
from malmen_cli.operations.saved_plan import read_plan, save_plan

MB = 1_000_000
PER_BYTE = 30  # bytes of memory per byte of a file: JSON of nothing but empty lists is the worst
PER_FACT = 700  # bytes per fact, whose own text may be as short as a byte
CONSTANT = 16 * MB  # what any file may take, such as the problems that are named

LIMITS = {"header": LARGEST_HEADER, "index": LARGEST_INDEX, "plan": LARGEST_PLAN, "settings": LARGEST_SETTINGS}
"""Bytes that are read of a file at all; a fact file has no limit."""

FULL = {"header": LARGEST_HEADER - MB // 2, "settings": LARGEST_SETTINGS - 10_000}
"""Bytes per shape with `--full`, where not 3 MB: just below what is read at all."""

TITLE = "R10: peak memory of readers"


def measure(shape: Shape, size: int) -> tuple[int, dict[str, int]]:
    """Bytes of the file, and what its reader told."""
    with TemporaryDirectory(dir=IN_MEMORY) as folder:
        path = Path(folder) / shape.name
        shape.write(path, size)
        command = [sys.executable, peak_memory.__file__, shape.reader, str(path)]
        environment = {**os.environ, "PYTHONPATH": str(Path(malmen_cli.__file__).parents[1])}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return path.stat().st_size, json.loads(done.stdout)


def bound(size: int, found: dict[str, int]) -> int:
    return max(PER_BYTE * size, PER_FACT * found["facts"]) + CONSTANT


def check(name: str, size: int, figures: Figures) -> None:
    shape = SHAPES[name]
    length, found = measure(shape, size)
    figures(
        TITLE,
        reader=shape.reader,
        shape=name,
        input_MB=round(length / MB, 1),
        peak_MB=round(found["peak"] / MB, 1),
        ratio=round(found["peak"] / length, 1),
        facts=found["facts"],
        reported=found["said"],
        seconds=round(found["seconds"], 1),
    )
    assert found["peak"] <= bound(length, found)
    assert found["said"] <= MAX_PROBLEMS + 1


# The worst of every kind: problems, JSON, CSV, facts, headers. All of them with --full.
QUICK = (
    "lines that are no JSON",
    "empty lists in one field",
    "rephrases that are numbers",
    "CSV columns",
    "small facts, CSV",
    "repeats, each with a rephrase",
    "tensors",
)


pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")


@pytest.mark.parametrize("name", SHAPES)
def test_it_is_bounded(name: str, full: bool, figures: Figures) -> None:
    if full:
        check(name, FULL.get(SHAPES[name].reader, 3 * MB), figures)
    elif name in QUICK:
        check(name, 300_000, figures)
    else:
        pytest.skip("with --full")


@pytest.mark.parametrize("reader", LIMITS)
def test_what_is_over_its_limit_is_not_parsed(reader: str, full: bool, figures: Figures) -> None:
    """The worst shape, just over what is read at all."""
    if not full and reader != "settings":
        pytest.skip("with --full")
    name = next(name for name, shape in SHAPES.items() if shape.reader == reader and name.startswith("empty lists"))
    length, found = measure(SHAPES[name], LIMITS[reader] + 1000)
    figures(
        TITLE,
        reader=reader,
        shape=f"{name}, over the limit",
        input_MB=round(length / MB, 1),
        peak_MB=round(found["peak"] / MB, 1),
        ratio=round(found["peak"] / length, 1),
        facts=0,
        reported=found["said"],
        seconds=round(found["seconds"], 1),
    )
    assert not found["accepted"]
    assert found["peak"] <= 2.2 * length + CONSTANT


def test_a_fact_file_of_100_mb(full: bool, figures: Figures) -> None:
    """One cell of 100 MB, and one record of nothing but lists."""
    if not full:
        pytest.skip("with --full")
    check("one CSV cell", 100 * MB, figures)
    check("lists in lists, never closed", 100 * MB, figures)


def test_problems_beyond_the_most_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text("x\n" * (MAX_PROBLEMS + 500))
    with pytest.raises(BadFacts) as caught:
        read_fact_set(path)
    assert caught.value.message.startswith(f"{MAX_PROBLEMS + 500:,} problems")
    assert len(caught.value.problems) == MAX_PROBLEMS + 1
    assert caught.value.problems[-2:] == (
        f"{path}:{MAX_PROBLEMS}: not JSON: Expecting value (column 1)",
        "... and 500 more",
    )


def test_a_plan_that_could_not_be_read_again_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = DamagedLedger()
    with Ledger.open(world.workspace) as ledger:
        with ledger.read() as db:
            model = store.model_named(db, "tiny")
        proposal = propose(ledger, model, read_fact_set(world.facts), None)
    save_plan(tmp_path / "plan.json", proposal)
    assert read_plan(tmp_path / "plan.json").facts == proposal.facts
    monkeypatch.setattr(saved_plan, "LARGEST", 100)
    with pytest.raises(UsageError, match="2 facts") as caught:
        save_plan(tmp_path / "other.json", proposal)
    assert caught.value.remedy and not (tmp_path / "other.json").exists()


def test_a_careless_reader_is_noticed() -> None:
    """Negative control: a list of every bad line is over the bound."""
    length, found = measure(replace(SHAPES["lines that are no JSON"], reader="careless"), MB)
    assert found["peak"] > bound(length, found)
