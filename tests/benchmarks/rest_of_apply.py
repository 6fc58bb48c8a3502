"""What an apply takes beside the model's passes and the solve, and beside a plain copy of the bytes it must write.

    python tests/benchmarks/rest_of_apply.py

A model of GPT-2-small's shape (124 M parameters, random weights, the demo's tokenizer), an editor of one training
step, and --facts facts in one apply. Timed from the fact file to the entry is everything that is neither the loading
of the model, nor a model pass, nor the solve: reading and folding the facts, the check of the checkpoint against the
ledger's head (every byte is hashed), writing and hashing the rows, reading them back for the solve, hashing and
writing objects, the database, patching the shard and reading it back. In the same run a plain copy: the shard copied,
the new tensors and the rows written, each file synced. The least of --repeats, each after a revert and with facts of
its own. Prints a Markdown table, seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ledger_cost import fresh_facts, world

from malmen_cli.config import EditorConfig, TrainingConfig
from malmen_cli.editing.normal_equation import NormalEquation
from malmen_cli.facts import read_fact_set
from malmen_cli.ledger import Ledger, ModelRecord, ObjectStore, transactions
from malmen_cli.ledger.row_files import RowFile
from malmen_cli.operations import active, rows, solving, workbench
from malmen_cli.operations import apply as applying
from malmen_cli.operations.revert import revert_entry

TRAINING = TrainingConfig(editor=EditorConfig(preserved_keys=64), steps=1, facts_per_step=8, max_held_out=4)
REST = {
    "read, fold": [(applying, "propose"), (active, "require_room_ahead"), (applying, "require_room_ahead")],
    "check of the head": [(transactions, "require_as_head")],
    "rows: written": [(RowFile, "write")],
    "rows: hashed": [(workbench, "digest_all")],
    "rows: read": [(rows.RowReader, "chunk")],
    "base tensors read": [(solving, "base_tensor"), (workbench, "base_tensor")],
    "objects": [(ObjectStore, "put_many"), (transactions, "ensure_base_objects")],
    "database": [
        (transactions, "insert_entry"),
        (transactions, "mark_applied"),
        (transactions, "_check_active_digest"),
    ],
    "patch": [(transactions, "write_changes")],
    "rest of commit": [(applying, "commit_entry")],
    "other digests": [(solving, "digest_bytes"), (solving, "to_bytes")],
}
NOT_REST = {
    "load": [(workbench, "load_base"), (workbench, "load_editor")],
    "solve": [(solving, "solve_active"), (NormalEquation, "update"), (solving, "change_figures")],
}


class Watch:
    """Seconds spent inside functions by name, without what other watched functions within took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._within: list[float] = []

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **options: Any) -> Any:
            self._within.append(0.0)
            began = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                took = time.perf_counter() - began
                self.seconds[name] = self.seconds.get(name, 0) + took - self._within.pop()
                if self._within:
                    self._within[-1] += took

        return instead


@contextmanager
def watched() -> Iterator[Watch]:
    watch = Watch()
    with ExitStack() as stack:
        for name, places in {**REST, **NOT_REST}.items():
            for home, attribute in places:
                if attribute in vars(home):
                    stack.enter_context(patch.object(home, attribute, watch.timed(name, vars(home)[attribute])))
        yield watch


def plain_copy(model: ModelRecord, written: list[Path], folder: Path) -> tuple[float, int]:
    """Seconds and bytes of copying the shards and writing the objects, synced."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    contents = [path.read_bytes() for path in written]
    size = 0
    began = time.perf_counter()
    for name in model.manifest.weights:
        shutil.copyfile(model.path / name, folder / name)
    for place, data in enumerate(contents):
        (folder / str(place)).write_bytes(data)
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        size += 0 if path == folder else path.stat().st_size
    return time.perf_counter() - began, size


def measure(ledger: Ledger, model: ModelRecord, count: int, number: int, folder: Path) -> dict[str, float]:
    file = folder / "facts.jsonl"
    facts = fresh_facts(count, number)
    file.write_text("".join(f"{json.dumps({'prompt': f.prompt, 'target': f.target})}\n" for f in facts))
    before = set(ledger.objects)
    os.sync()
    with watched() as watch:
        began = time.perf_counter()
        facts = watch.timed("read, fold", read_fact_set)(file)
        applied = applying.apply_facts(ledger, model, facts, applying.ApplyOptions(), "malmen apply")
        total = time.perf_counter() - began
    assert applied.entry is not None
    written = [ledger.objects.path(digest) for digest in sorted(set(ledger.objects) - before)]
    os.sync()
    copied, size = plain_copy(model, written, folder / "copy")
    copied = min(copied, plain_copy(model, written, folder / "copy")[0])
    revert_entry(ledger, model, "HEAD", [], "malmen revert HEAD")
    rest = sum(took for name, took in watch.seconds.items() if name not in NOT_REST)
    return {**watch.seconds, "rest": rest, "all": total, "plain copy": copied, "bytes": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to work; the system's temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        with world("gpt2-small", folder, TRAINING) as (ledger, model):
            runs = [measure(ledger, model, options.facts, i, folder) for i in range(options.repeats)]
    least = {name: min(run[name] for run in runs) for name in runs[0]}
    names = [name for name in runs[0] if name not in ("rest", "all", "plain copy", "bytes", *NOT_REST)]
    heads = [*names, "rest of apply", "all of it", "rest / all", "plain copy", "MB", "rest / plain copy"]
    cells = [f"{least[name]:.2f}" for name in [*names, "rest", "all"]]
    cells += [f"{min(run['rest'] / run['all'] for run in runs):.1%}", f"{least['plain copy']:.2f}"]
    cells += [f"{least['bytes'] / 1e6:,.0f}", f"{least['rest'] / least['plain copy']:.2f}"]
    for line in (heads, ["---"] * len(heads), cells):
        print(f"| {' | '.join(line)} |")
    for run in runs:
        print("<!--", {name: round(took, 3) for name, took in run.items()}, "-->")


if __name__ == "__main__":
    main()
