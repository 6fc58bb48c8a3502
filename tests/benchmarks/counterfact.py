"""ES / GS / LS of trained editors on a real model and real facts, by the program itself.

    python tests/benchmarks/counterfact.py --shared ../shared --minutes 15 --seeds 0 1 2

Per seed: a copy of the model, `malmen train` on CounterFact's training file, then for each size `malmen apply` of the
first facts of its dev file and `malmen revert`, after which every file of the checkpoint must have its sha256 back.
Prints a Markdown table with a row per seed and the means. Nothing here is timed by a test.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from real_edits import Subject, head, measure, row, triple

SIZES = (1, 8, 64, 256, 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/cf-gpt2 and data/counterfact")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("train", nargs="*", help="further options of malmen train, after --")
    options = parser.parse_args()
    shared = options.shared.resolve()
    facts = shared / "data" / "counterfact"
    subject = Subject("cf-gpt2", shared / "models" / "cf-gpt2", facts / "train.json", facts / "dev.json")
    print(head("seed", SIZES), flush=True)
    found = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            scores, trained = measure(
                subject, Path(folder), minutes=options.minutes, seed=seed, sizes=SIZES, train=options.train
            )
        found.append(scores)
        cells = [triple(scores[size]) for size in SIZES]
        cells += [f"{trained['facts_seen']:,}", f"{trained['wall']:.0f}", f"{scores[256]['seconds']:.1f}"]
        print(row(str(seed), cells), flush=True)
    means = {
        size: {key: sum(scores[size][key] or 0.0 for scores in found) / len(found) for key in ("ES", "GS", "LS")}
        for size in SIZES
    }
    print(row("mean", [triple(means[size]) for size in SIZES] + ["", "", ""]))


if __name__ == "__main__":
    main()
