"""Editing methods compared: runs that outlive an interruption, shown as they end.

Runs are kept as JSON Lines, so that the same command goes on where it was. A change of facts or settings, defaults too,
makes another run; after a change of malmen's code name another file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from hashlib import sha256
from pathlib import Path
from typing import Any

from method_runs import Contender, RunFailed, Task, add_limit, limit_of, run
from method_tables import before_any_edit, heading, line, means

from malmen_cli.config import RECIPES
from malmen_cli.methods.registry import METHODS


def options_of(parser: argparse.ArgumentParser, variants: Sequence[str], methods: Sequence[str]) -> None:
    """The options that every comparison has."""
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/cf-gpt2 and data")
    add_limit(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--variants", nargs="*", choices=variants, default=variants, metavar="NAME", help="trained ones"
    )
    parser.add_argument("--methods", nargs="*", choices=methods, default=methods, metavar="NAME", help="untrained ones")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1000])
    parser.add_argument("--draws", type=int, default=4, help="most draws of a size; they share no fact")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--out", type=Path, help="JSON Lines with all runs: those that are there are not made again")


def compare(task: Task, contenders: Mapping[str, Contender], options: argparse.Namespace) -> None:
    """Run every contender with every seed that is not there yet; print the table as it grows, then means over seeds."""
    if missing := [size for size in options.sizes if not task.draws[size]]:
        sys.exit(f"{task.name} has fewer than {min(missing):,} facts to score")
    chosen = {name: contenders[name] for name in [*options.variants, *options.methods]}
    first = options.seeds[0]
    wanted = [(name, seed) for seed in options.seeds for name in chosen if seed == first or chosen[name].random]
    print(heading(options.sizes), flush=True)
    found, failures = {}, []
    for (name, seed), outcome in _runs(task, chosen, wanted, options):
        if isinstance(outcome, RunFailed):
            failures.append(f"{name}, seed {seed}: {outcome}")
            print(failures[-1], file=sys.stderr, flush=True)
            continue
        found[name, seed] = outcome
        print(line(name, seed, outcome, options.sizes), flush=True)
    for size in options.sizes:
        print(f"\n{means(found, list(chosen), size, len(task.draws[size]))}", flush=True)
    print(f"\n{before_any_edit(found, options.sizes)}\n")
    for name, contender in chosen.items():
        print(f"- {name}: {contender.about}")
    if failures:
        sys.exit(f"{len(failures)} of {len(wanted)} runs failed, and are made again by the same command")


def _runs(
    task: Task, contenders: Mapping[str, Contender], wanted: Sequence[tuple[str, int]], options: argparse.Namespace
) -> Iterator[tuple[tuple[str, int], dict[str, Any] | RunFailed]]:
    """Runs as they end, those that were made before first."""
    facts = sha256(json.dumps([task.training, list(task.draws.items())]).encode()).hexdigest()
    limit = limit_of(options)

    def key(name: str, seed: int) -> str:
        one = contenders[name]
        trained = limit if one.trained else None
        defaults = [METHODS[one.method].settings_class()().model_dump(mode="json"), RECIPES]
        identity = [task.name, facts, one.method, one.settings, one.flags, seed, trained, defaults]
        return sha256(json.dumps(identity).encode()).hexdigest()

    def attempt(name: str, seed: int) -> dict[str, Any] | RunFailed:
        try:
            return run(task, contenders[name], seed, limit)
        except RunFailed as failed:
            return failed

    before = _kept(options.out)
    for name, seed in wanted:
        if (there := before.get(key(name, seed))) is not None:
            yield (name, seed), there
    missing = [one for one in wanted if key(*one) not in before]
    pool = ThreadPoolExecutor(options.jobs)
    try:
        running = {pool.submit(attempt, *one): one for one in missing}
        for done in as_completed(running):
            name, seed = running[done]
            outcome = done.result()
            if options.out is not None and not isinstance(outcome, RunFailed):
                about = {"key": key(name, seed), "task": task.name, "name": name, "seed": seed}
                _keep(options.out, about | {"limit": limit, **outcome})
            yield (name, seed), outcome
    finally:
        pool.shutdown(cancel_futures=True)  # interrupted, it begins no more


def _keep(out: Path, made: Mapping[str, Any]) -> None:
    with out.open("ab+") as opened:
        if opened.tell():
            opened.seek(-1, 2)
            if opened.read() != b"\n":  # the last line's writing was interrupted
                opened.write(b"\n")
        opened.write(json.dumps(made).encode() + b"\n")


def _kept(out: Path | None) -> dict[str, dict[str, Any]]:
    if out is None or not out.exists():
        return {}
    found = {}
    for text in out.read_text("utf-8").splitlines():
        try:
            made = json.loads(text)
        except ValueError:  # a line whose writing was interrupted
            continue
        found[made["key"]] = made
    return found
