"""What the ledger adds to an apply, in seconds and bytes, beside save_pretrained of the same model.

    python tests/benchmarks/ledger_cost.py

Two models: the demo's, and one of GPT-2-small's shape (124 M parameters, random weights: what is timed does not depend
on their values). Each gets an editor of one training step and an apply of 16 and of 256 facts, with every step of the
apply timed: the edit itself (load, capture, solve, ask before and after), the check of the whole checkpoint against the
ledger's head, and the writing (objects, database, shard, reading back). In the same run the model is saved with
save_pretrained into a folder of its own, and that folder synced, as the ledger's files are. Medians of --repeats, each
after a revert. Prints two Markdown tables, in seconds and in MB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from malmen_cli.config import EditorConfig, TrainingConfig
from malmen_cli.demo import DATA
from malmen_cli.facts import Fact, FactSet
from malmen_cli.facts.reading import read_fact_set
from malmen_cli.ledger import Ledger, ModelRecord, create_workspace, store, transactions
from malmen_cli.ledger.holdings import holding
from malmen_cli.operations import apply as applying
from malmen_cli.operations.models import register
from malmen_cli.operations.revert import revert_entry
from malmen_cli.operations.train import train_editor

SIZES = (16, 256)
SECONDS = ["model, facts", "apply", "of it: check", "of it: write", "revert", "save_pretrained", "and sync"]
SECONDS += ["(check + write) / save and sync", "(check + write) / apply"]
SIZES_MB = ["model, facts", "base, kept once", "tensors per apply", "rows", "database", "save_pretrained"]
SIZES_MB += ["(tensors + rows) / saved"]
TRAINING = TrainingConfig(editor=EditorConfig(rank=16, preserved_keys=64), steps=1, facts_per_step=8, max_held_out=4)


def make_model(name: str, folder: Path) -> Path:
    """The demo's model, or one of GPT-2-small's shape with the demo's tokenizer, float32."""
    shutil.copytree(DATA / "model", folder)
    if name != "demo":
        (folder / "model.safetensors").unlink()
        GPT2LMHeadModel(GPT2Config(n_positions=256)).save_pretrained(folder)
    return folder


@contextmanager
def world(name: str, folder: Path, training: TrainingConfig = TRAINING) -> Iterator[tuple[Ledger, ModelRecord]]:
    """A workspace in an empty folder, with such a model and an editor of it."""
    checkpoint = make_model(name, folder / "model")
    with Ledger.open(create_workspace(folder), writing=True) as ledger:
        model = register(ledger, name, checkpoint, command="malmen models add").model
        train_editor(ledger, model, read_fact_set(DATA / "facts.jsonl"), training)
        yield ledger, model


class Stopwatch:
    """Seconds spent inside functions, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - began

        return instead


@contextmanager
def watched() -> Iterator[Stopwatch]:
    """An apply's two dealings with the ledger, timed: the check against its head, and the entry's writing."""
    watch = Stopwatch()
    with (
        patch.object(transactions, "require_as_head", watch.timed("check", transactions.require_as_head)),
        patch.object(applying, "commit_entry", watch.timed("write", applying.commit_entry)),
    ):
        yield watch


def bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def database_size(ledger: Ledger) -> int:
    with ledger.read() as db:
        pages, size = (db.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "page_size"))
    return int(pages) * int(size)


def saved(model: Any, folder: Path) -> tuple[float, float, int]:
    """save_pretrained: seconds without and with syncing what it wrote, and bytes."""
    began = time.perf_counter()
    model.save_pretrained(folder)
    plain = time.perf_counter() - began
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    return plain, time.perf_counter() - began, bytes_in(folder)


def fresh_facts(count: int, number: int) -> FactSet:
    """Facts that no earlier run has applied: stored rows would be found and not be written again."""
    known = read_fact_set(DATA / "training.jsonl").facts
    facts = (known[i % len(known)] for i in range(count))
    return FactSet(tuple(Fact(f"{number}.{i} {fact.prompt}", fact.target) for i, fact in enumerate(facts)), "facts")


def measure(ledger: Ledger, model: ModelRecord, count: int, repeats: int, spare: Path) -> dict[str, float]:
    """Medians over applies of `count` facts each: seconds by what they went to, bytes by what they are."""
    language_model = AutoModelForCausalLM.from_pretrained(model.path)
    runs: list[dict[str, float]] = []
    for number in range(repeats):
        facts = fresh_facts(count, number)
        with watched() as watch:
            began = time.perf_counter()
            applied = applying.apply_facts(ledger, model, facts, applying.ApplyOptions(sample=0), "malmen apply")
            total = time.perf_counter() - began
        assert applied.entry is not None
        with ledger.read() as db:
            held = holding(db, ledger.objects, model, applied.entry)
        began = time.perf_counter()
        revert_entry(ledger, model, "HEAD", [], "malmen revert HEAD")
        revert = time.perf_counter() - began
        shutil.rmtree(spare, ignore_errors=True)
        plain, synced, size = saved(language_model, spare)
        run = {"total": total, **watch.seconds, "revert": revert, "plain": plain, "synced": synced}
        runs.append(run | {"tensors": held.tensors, "rows": held.rows, "kept": held.total, "size": size})
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def costs(name: str, folder: Path, repeats: int) -> Iterator[tuple[list[str], list[str]]]:
    """The two tables' cells for one model, a pair of rows per number of facts."""
    with world(name, folder) as (ledger, model):
        with ledger.read() as db:
            base = holding(db, ledger.objects, model, store.head(db, model.id)).total
        for count in SIZES:
            database = database_size(ledger)
            m = measure(ledger, model, count, repeats, folder / "saved")
            grown = (database_size(ledger) - database) / repeats  # of an apply and its revert
            ours = m["check"] + m["write"]
            seconds = [m["total"], m["check"], m["write"], m["revert"], m["plain"], m["synced"], ours / m["synced"]]
            sizes = [base, m["tensors"], m["rows"], grown, m["size"]]
            label = f"{name}, {count}"
            yield (
                [label, *(f"{value:.2f}" for value in seconds), f"{ours / m['total']:.0%}"],
                [label, *(f"{value / 1e6:.2f}" for value in sizes), f"{m['kept'] / m['size']:.2f}"],
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("demo", "gpt2-small"), default=["demo", "gpt2-small"])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    seconds = [SECONDS, ["---"] * len(SECONDS)]
    sizes = [SIZES_MB, ["---"] * len(SIZES_MB)]
    for name in options.models:
        with tempfile.TemporaryDirectory() as folder:
            for in_seconds, in_bytes in costs(name, Path(folder), options.repeats):
                seconds.append(in_seconds)
                sizes.append(in_bytes)
    for table in (seconds, sizes):
        print("\n".join(f"| {' | '.join(cells)} |" for cells in table), end="\n\n")


if __name__ == "__main__":
    main()
