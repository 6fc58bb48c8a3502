"""ES / GS / LS of a T5, a BERT and a GPT-2 that know facts, each edited by an editor of the same training time.

    python tests/benchmarks/knowing_models.py t5 made/t5 --shared ../shared
    python tests/benchmarks/knowing_models.py bert made/bert --shared ../shared
    python tests/benchmarks/real_families.py made --shared ../shared --minutes 10

cf-gpt2 gets the T5's fact files. Per model `malmen models add`, `malmen train`, and for each size `malmen apply` of the
first facts of dev.json, `malmen eval` and `malmen revert`, after which every file must have its sha256 back. Prints a
Markdown table: ES / GS / LS, and in brackets the share of unrelated answers that are still the base's. Teacher-forced,
half of what the T5 is asked is the end of its one-word answers, which it knows anyway; generated answers count whole.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

from real_edits import Subject, head, measure, row, score, triple

SIZES = (1, 8, 64, 256)
MODELS = ("t5", "bert", "cf-gpt2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("made", type=Path, help="folder in which knowing_models.py made t5 and bert")
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/cf-gpt2")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("train", nargs="*", help="further options of malmen train, after --")
    options = parser.parse_args()
    print(head("model", SIZES), flush=True)
    for name in options.models:
        facts = options.made.resolve() / ("bert" if name == "bert" else "t5")
        checkpoint = options.shared.resolve() / "models" / "cf-gpt2" if name == "cf-gpt2" else facts / "model"
        subject = Subject(name, checkpoint, facts / "train.json", facts / "dev.json")
        with tempfile.TemporaryDirectory() as folder:
            scores, trained = measure(
                subject,
                Path(folder),
                minutes=options.minutes,
                seed=options.seed,
                sizes=SIZES,
                train=options.train,
                evaluate=True,
            )
        forced = [scores[size] for size in SIZES]
        free = [scores[size]["generated"] for size in SIZES]
        told = [f"{trained['facts_seen']:,}", f"{trained['wall']:.0f}", f"{scores[256]['seconds']:.1f}"]
        print(row(f"{name}, teacher-forced", [*map(quadruple, forced), *told]))
        print(row(f"{name}, generated", [*map(quadruple, free), "", "", ""]), flush=True)


def quadruple(scores: Mapping[str, float | None]) -> str:
    return f"{triple(scores)} ({score(scores['unchanged'])})"


if __name__ == "__main__":
    main()
