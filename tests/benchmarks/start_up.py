"""What starting malmen takes, beside starting Python.

    python tests/benchmarks/start_up.py

Each command --runs times, one after another in turn, in a workspace of --entries applies of 20 facts each to a tiny
folder (by the ledger's stand-in for the mathematics: what the ledger holds is real). Prints a Markdown table: the
least and the median of the wall seconds, the median of the processor seconds, and the median above `python -c pass`
run beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tests' own worlds

from ledger_world import apply, fact, make_world

from malmen_cli.ledger import Ledger

BARE = "python -c pass"


def spent(command: list[str], folder: Path) -> tuple[float, float]:
    """Wall and processor seconds of one run."""
    before, began = os.times(), time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    took, after = time.perf_counter() - began, os.times()
    return took, after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--entries", type=int, default=20)
    options = parser.parse_args()
    malmen = [sys.executable, "-m", "malmen_cli"]
    commands = {BARE: [sys.executable, "-c", "pass"]}
    for words in ("--help", "--version", "log", "show HEAD", "apply --help"):
        commands[f"malmen {words}"] = [*malmen, *words.split()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace, _ = make_world(folder)
        with Ledger.open(workspace, writing=True) as ledger:
            for entry in range(options.entries):
                apply(ledger, *(fact(f"prompt {entry}.{i}") for i in range(20)))
        runs: dict[str, list[tuple[float, float]]] = {label: [] for label in commands}
        for _ in range(options.runs):
            for label, command in commands.items():
                runs[label].append(spent(command, folder))
    bare = [wall for wall, _ in runs[BARE]]
    heads = ["command", "least, s", "median, s", "processor, s", "above Python, s"]
    for line in (heads, ["---"] * len(heads)):
        print(f"| {' | '.join(line)} |")
    for label, found in runs.items():
        wall = [took for took, _ in found]
        above = statistics.median(took - beside for took, beside in zip(wall, bare, strict=True))
        cells = [min(wall), statistics.median(wall), statistics.median(cpu for _, cpu in found), above]
        print(f"| `{label}` | {' | '.join(f'{cell:.3f}' for cell in cells)} |")


if __name__ == "__main__":
    main()
