"""Small models that know facts, trained from nothing on the shared data: a T5 and a BERT.

    python tests/benchmarks/knowing_models.py t5 FOLDER --shared ../shared
    python tests/benchmarks/knowing_models.py bert FOLDER --shared ../shared

Writes `model/` as `save_pretrained` does, `train.json` to train an editor on and `dev.json` to score it with, and
prints what the model knows as JSON. Takes minutes; nothing is downloaded. Everything is seeded, but the trainers of
`tokenizers` break ties in another order every time: two runs give models that are alike, not equal.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from knowing_bert import make_bert
from knowing_t5 import make_t5

# facts to train an editor on, facts to score it with, passes over what is learned
SIZES = {"t5": (3000, 500, 10), "bert": (1600, 1600, 10)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(SIZES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/counterfact and data/fever")
    parser.add_argument("--facts", type=int, help="facts to train an editor on")
    parser.add_argument("--scored", type=int, help="facts to score it with")
    parser.add_argument("--epochs", type=int, help="passes over what is learned")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    facts, scored, epochs = SIZES[options.model]
    options.folder.mkdir(parents=True, exist_ok=True)
    make = make_t5 if options.model == "t5" else make_bert
    known = make(
        options.shared,
        options.folder,
        facts=options.facts or facts,
        scored=options.scored or scored,
        epochs=options.epochs or epochs,
        seed=options.seed,
    )
    print(json.dumps(known))


if __name__ == "__main__":
    main()
