"""One run of a comparison, by the program itself: a contender with a seed, trained, and scored on draws of facts."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from malmen_cli.methods.registry import METHODS

Record = Mapping[str, Any]
Limit = tuple[str, str]
"""How long a training goes on, as options of `malmen train`: `--minutes` or `--steps`, and how many."""


class RunFailed(Exception):
    """A command did not end well; the message is what it said."""


@dataclass(frozen=True)
class Contender:
    """A method with its settings.

    Attributes:
        about: what it differs in, or whose settings these are. flags: further options of `malmen train`.
        settings: of `malmen train --config`; without training, of `malmen eval --method-settings`.
        random: another seed makes another edit.
    """

    about: str
    method: str = "malmen"
    settings: Record = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    random: bool = True

    @property
    def trained(self) -> bool:
        return METHODS[self.method].trained


@dataclass(frozen=True)
class Task:
    """What everybody is given: a checkpoint, records to train on, draws of records to score by size, running text."""

    name: str
    checkpoint: Path
    training: Sequence[Record]
    draws: Mapping[int, Sequence[Sequence[Record]]]
    text: Path


def draws_of(records: Sequence[Record], sizes: Sequence[int], most: int) -> dict[int, list[Sequence[Record]]]:
    """For each size up to `most` draws of records, which share none; the records come in a random order already."""
    return {
        size: [records[i * size : (i + 1) * size] for i in range(min(most, len(records) // size))] for size in sizes
    }


def malmen(*arguments: str, cwd: Path) -> tuple[str, dict[str, float]]:
    """Standard output of a run in a process of one thread, which must end with 0, and its wall and processor seconds.

    Raises:
        RunFailed: it ended with anything else.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    with (cwd / "stderr.txt").open("w+", encoding="utf-8", errors="replace") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "malmen_cli", *arguments],
            cwd=cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        assert process.stdout is not None
        with process.stdout:
            output = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            said.seek(0)
            words = said.read().strip()[-2000:]
            raise RunFailed(f"malmen {' '.join(arguments)}: exit status {process.returncode}\n{words}")
    return output, {"wall": time.monotonic() - began, "processor": used.ru_utime + used.ru_stime}


def prepare(task: Task, folder: Path) -> None:
    """A workspace with a copy of the checkpoint, registered as `subject`."""
    shutil.copytree(task.checkpoint, folder / "model")
    for path in [folder / "model", *(folder / "model").iterdir()]:
        path.chmod(path.stat().st_mode | 0o200)
    malmen("init", cwd=folder)
    malmen("models", "add", "subject", "model", "-q", cwd=folder)


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Options for `limit_of`."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--minutes", type=float, default=5, help="of each training, by the clock on the wall")
    either.add_argument("--steps", type=int, help="of each training instead: no matter how fast the machine is")


def limit_of(options: argparse.Namespace) -> Limit:
    return ("--minutes", str(options.minutes)) if options.steps is None else ("--steps", str(options.steps))


def train(task: Task, contender: Contender, seed: int, limit: Limit, folder: Path) -> dict[str, Any]:
    """Train the contender's editor in a workspace. Returns its steps and facts, and what it took in seconds."""
    (folder / "training.json").write_text(json.dumps(task.training), "utf-8")
    (folder / "settings.json").write_text(json.dumps(contender.settings), "utf-8")
    options = [*limit, "--seed", str(seed), "--config", "settings.json", *contender.flags]
    output, seconds = malmen("train", "training.json", "--method", contender.method, *options, "--json", cwd=folder)
    said = json.loads(output)
    return {name: said[name] for name in ("steps", "best_step", "facts_seen")} | {"seconds": seconds}


def evaluate(task: Task, contender: Contender, seed: int, records: Sequence[Record], folder: Path) -> dict[str, Any]:
    """Edit facts in memory and ask: what `malmen eval --json` says, with what it took in seconds."""
    (folder / "facts.json").write_text(json.dumps(records), "utf-8")
    options = ["--n-edits", str(len(records)), "--method", contender.method]
    if not contender.trained:
        (folder / "settings.json").write_text(json.dumps({"seed": seed, **contender.settings}), "utf-8")
        options += ["--method-settings", "settings.json"]
    if METHODS[contender.method].takes_text:
        options += ["--text", str(task.text)]
    output, seconds = malmen("eval", "facts.json", *options, "--no-keep", "--json", cwd=folder)
    found: dict[str, Any] = json.loads(output)
    if found["scored"] != len(records):
        raise RunFailed(f"{found['scored']:,} of {len(records):,} facts were scored: the others cannot be asked")
    return found | {"seconds": seconds}


def run(task: Task, contender: Contender, seed: int, limit: Limit) -> dict[str, Any]:
    """Train, where there is something to train, and score every draw."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(task, folder)
        trained = train(task, contender, seed, limit, folder) if contender.trained else None
        kept = ("asked", "before", "after", "unchanged", "six_scores", "warnings", "seconds")
        scored: dict[str, list[dict[str, Any]]] = {}
        for size, draws in task.draws.items():
            every = (evaluate(task, contender, seed, records, folder) for records in draws)
            scored[str(size)] = [{key: found[key] for key in kept} for found in every]
    return {"trained": trained, "draws": scored}
