"""Scores against the number of facts, malmen beside other methods: the curve of the README.

    python tests/benchmarks/curve.py --shared ../shared --minutes 5 --report FOLDER

On cf-gpt2: one editor is trained on the facts that `locality.py` trains on, and `malmen eval --n-edits` compares it
with methods without training on draws of the facts scored there. The folder then holds the report: HTML, Markdown,
JSON, and every figure as PNG and SVG.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from locality import METHODS, VARIANTS, task
from method_runs import add_limit, limit_of, malmen, prepare, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/cf-gpt2 and data")
    add_limit(parser)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the draws; the editor's is the first"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 64, 256, 1000])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["locft-bf", "ultraedit"], metavar="NAME")
    parser.add_argument("--report", type=Path, required=True, help="folder of the report, made or gone on with")
    options = parser.parse_args()
    given = task(options.shared.resolve(), [1000], 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(given, folder)
        train(given, VARIANTS["defaults"], options.seeds[0], limit_of(options), folder)
        (folder / "counterfact.json").write_text(json.dumps(given.draws[1000][0]), "utf-8")
        malmen("data", "add", "counterfact", "counterfact.json", cwd=folder)
        numbers = [",".join(map(str, values)) for values in (options.sizes, options.seeds)]
        asked = ["--n-edits", numbers[0], "--seed", numbers[1], "--method", ",".join(["malmen", *options.methods])]
        said, _ = malmen(
            "eval", "--split", "counterfact", *asked, "--report", str(options.report.resolve()), cwd=folder
        )
        print(said)


if __name__ == "__main__":
    main()
