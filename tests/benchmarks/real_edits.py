"""Editors trained and facts edited by the program itself: what the benchmarks of real models share."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Subject:
    """What is edited: a checkpoint, the facts an editor is trained on, and those it is scored with."""

    name: str
    checkpoint: Path
    training: Path
    facts: Path


def malmen(*arguments: str, cwd: Path, statuses: tuple[int, ...] = (0,)) -> str:
    """Standard output of a whole run, which must end with one of these statuses."""
    done = subprocess.run([sys.executable, "-m", "malmen_cli", *arguments], cwd=cwd, stdout=subprocess.PIPE, text=True)
    if done.returncode not in statuses:
        sys.exit(f"malmen {' '.join(arguments)}: exit status {done.returncode}")
    return done.stdout


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def measure(
    subject: Subject,
    folder: Path,
    *,
    minutes: float,
    seed: int,
    sizes: Sequence[int],
    train: Sequence[str] = (),
    evaluate: bool = False,
) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """Train an editor on a copy of the checkpoint; apply, score and revert the first facts, size after size.

    After each revert every file must have its sha256 back, else the program ends.

    Args:
        folder: an empty one. train: further options of `malmen train`. evaluate: score with `malmen eval` as well,
            which adds `unchanged`, and the four scores of free answers as `generated`.

    Returns:
        ES, GS, LS and seconds of the apply by size, and what `malmen train --json` said, with its wall time in seconds.
    """
    checkpoint = folder / "model"
    shutil.copytree(subject.checkpoint, checkpoint)
    for path in [checkpoint, *checkpoint.iterdir()]:
        path.chmod(path.stat().st_mode | 0o200)
    base = digests(checkpoint)
    facts = json.loads(subject.facts.read_text("utf-8"))
    malmen("init", cwd=folder)
    malmen("models", "add", subject.name, "model", "-q", cwd=folder)
    began = time.monotonic()
    budget = ["--minutes", str(minutes), "--seed", str(seed)]
    trained = json.loads(malmen("train", str(subject.training), *budget, "--json", *train, cwd=folder))
    trained["wall"] = time.monotonic() - began
    scores = {}
    for size in sizes:
        (folder / "facts.json").write_text(json.dumps(facts[:size]), "utf-8")
        began = time.monotonic()
        applied = json.loads(malmen("apply", "facts.json", "--json", "--sample", "0", cwd=folder, statuses=(0, 3)))
        scores[size] = applied["check"]["after"] | {"seconds": time.monotonic() - began}
        if evaluate:
            found = json.loads(malmen("eval", "HEAD", "--json", cwd=folder))
            generated = found["after"]["generated"]
            scores[size]["unchanged"] = found["unchanged"]["teacher_forced"]
            scores[size]["generated"] = {
                "ES": generated["edit"],
                "GS": generated["rephrase"],
                "LS": generated["unrelated"],
                "unchanged": found["unchanged"]["generated"],
            }
        malmen("revert", "HEAD", cwd=folder)
        if digests(checkpoint) != base:
            sys.exit(f"{subject.name}, seed {seed}, {size} facts: the checkpoint is not as it was before")
    malmen("verify", cwd=folder)
    return scores, trained


def head(first: str, sizes: Sequence[int]) -> str:
    """The heading of a Markdown table of scores by size, and the line under it."""
    counts = [f"{size} facts" if size > 1 else "1 fact" for size in sizes]
    cells = [*counts, "facts trained on", "train, wall s", "apply 256, wall s"]
    return f"{row(first, cells)}\n{row('---', ['---'] * len(cells))}"


def row(name: str, cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {name} | " + " | ".join(cells) + " |"


def score(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def triple(scores: Mapping[str, float | None]) -> str:
    return " / ".join(score(scores[key]) for key in ("ES", "GS", "LS"))
