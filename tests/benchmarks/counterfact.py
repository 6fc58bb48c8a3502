"""ES / GS / LS of trained editors on a real model and real facts, by the program itself.

    python tests/benchmarks/counterfact.py --shared ../shared --minutes 15 --seeds 0 1 2

Per seed: a copy of the model, `malmen train` on CounterFact's training file, then for each size `malmen apply` of the
first facts of its dev file and `malmen revert`, after which every file of the checkpoint must have its sha256 back.
Prints a Markdown table with a row per seed and the means. Nothing here is timed by a test.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

SIZES = (1, 8, 64, 256, 1000)


def malmen(*arguments: str, cwd: Path, statuses: tuple[int, ...] = (0,)) -> str:
    done = subprocess.run([sys.executable, "-m", "malmen_cli", *arguments], cwd=cwd, stdout=subprocess.PIPE, text=True)
    if done.returncode not in statuses:
        sys.exit(f"malmen {' '.join(arguments)}: exit status {done.returncode}")
    return done.stdout


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def run(seed: int, options: argparse.Namespace, folder: Path) -> tuple[dict[int, dict[str, float]], dict[str, Any]]:
    checkpoint = folder / "model"
    shutil.copytree(options.shared / "models" / "cf-gpt2", checkpoint)
    for path in [checkpoint, *checkpoint.iterdir()]:
        path.chmod(path.stat().st_mode | 0o200)
    base = digests(checkpoint)
    facts = json.loads((options.shared / "data" / "counterfact" / "dev.json").read_text("utf-8"))
    malmen("init", cwd=folder)
    malmen("models", "add", "cf-gpt2", "model", "-q", cwd=folder)
    training = str(options.shared / "data" / "counterfact" / "train.json")
    began = time.monotonic()
    trained = json.loads(
        malmen(
            "train",
            training,
            "--minutes",
            str(options.minutes),
            "--seed",
            str(seed),
            "--json",
            *options.train,
            cwd=folder,
        )
    )
    trained["wall"] = time.monotonic() - began
    scores = {}
    for size in SIZES:
        (folder / "facts.json").write_text(json.dumps(facts[:size]), "utf-8")
        began = time.monotonic()
        applied = json.loads(malmen("apply", "facts.json", "--json", "--sample", "0", cwd=folder, statuses=(0, 3)))
        scores[size] = applied["check"]["after"] | {"seconds": time.monotonic() - began}
        malmen("revert", "HEAD", cwd=folder)
        if digests(checkpoint) != base:
            sys.exit(f"seed {seed}, {size} facts: the checkpoint is not as it was before")
    malmen("verify", cwd=folder)
    return scores, trained


def row(name: str, cells: list[str]) -> str:
    return f"| {name} | " + " | ".join(cells) + " |"


def triple(scores: dict[str, float]) -> str:
    return " / ".join(f"{scores[key]:.3f}" for key in ("ES", "GS", "LS"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/cf-gpt2 and data/counterfact")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("train", nargs="*", help="further options of malmen train, after --")
    options = parser.parse_args()
    options.shared = options.shared.resolve()
    print(row("seed", [f"{size} facts" for size in SIZES] + ["facts trained on", "train, wall s", "apply 256, wall s"]))
    print(row("---", ["---"] * (len(SIZES) + 3)), flush=True)
    found = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            scores, trained = run(seed, options, Path(folder))
        found.append(scores)
        cells = [triple(scores[size]) for size in SIZES]
        cells += [f"{trained['facts_seen']:,}", f"{trained['wall']:.0f}", f"{scores[256]['seconds']:.1f}"]
        print(row(str(seed), cells), flush=True)
    means = {
        size: {key: sum(scores[size][key] for scores in found) / len(found) for key in ("ES", "GS", "LS")}
        for size in SIZES
    }
    print(row("mean", [triple(means[size]) for size in SIZES] + ["", "", ""]))


if __name__ == "__main__":
    main()
