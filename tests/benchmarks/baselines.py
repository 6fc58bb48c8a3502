"""Scores of the methods that need no training and depend on the whole set (FT, LocFT-BF, MEMIT), without a ledger.

    python tests/benchmarks/baselines.py --shared ../shared --methods ft locft-bf memit --sizes 64 256 --seeds 0 1 2

Per method, size and seed: facts drawn from CounterFact's dev file are edited in memory into cf-gpt2, and the model is
asked before and after. `--set locft-bf.epochs=25` changes a setting (JSON values). Prints a Markdown row for each, and
the means over seeds. Nothing here is timed by a test.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from statistics import mean
from typing import Any

from malmen_cli.evaluation.examination import Examination
from malmen_cli.facts import read_fact_set
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.methods.registry import method_named

KINDS = {"ES": "edit", "GS": "rephrase", "LS": "unrelated"}
# MEMIT's are the first ones, where this model's answers can still be turned at the subject.
LAYERS = {"memit": ["transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj"]}
COLUMNS = ["ES", "GS", "LS", "unchanged", "mean", "ES gen.", "GS gen.", "LS gen.", "unchanged gen.", "seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/cf-gpt2 and data")
    parser.add_argument("--methods", nargs="+", default=["ft", "locft-bf", "memit"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--file", default="dev.json", help="of data/counterfact")
    parser.add_argument("--set", nargs="*", default=[], metavar="METHOD.NAME=VALUE")
    options = parser.parse_args()
    print(f"| method | facts | seed | {' | '.join(COLUMNS)} |\n|---|{'---|' * (len(COLUMNS) + 2)}", flush=True)
    for name in options.methods:
        method = method_named(name)
        given = [item.partition(".")[2].partition("=") for item in options.set if item.startswith(f"{name}.")]
        settings = method.settings_class()(**{key: json.loads(value) for key, _, value in given})
        model = language_model(options.shared, settings, method)
        editor = method.load()(settings, model.shapes)
        editor.prepare(model, [], (options.shared / "data" / "text" / "wikitext2_test.txt").read_text("utf-8"))
        for size in options.sizes:
            rows = [scores(model, editor, options.shared, options.file, size, seed) for seed in options.seeds]
            for seed, row in [*zip(options.seeds, rows, strict=True), *([("mean", means(rows))] if rows[1:] else [])]:
                cells = [f"{value:.3f}" if key != "seconds" else f"{value:.0f}" for key, value in row.items()]
                print(f"| {name} | {size:,} | {seed} | {' | '.join(cells)} |", flush=True)


def language_model(shared: Path, settings: Any, method: Any) -> LanguageModel:
    """The model, with the layers that the method picks of those that it has by default, or of its own."""
    folder = shared / "models" / "cf-gpt2"
    if (globs := settings.layers or LAYERS.get(method.name)) is None:
        picked = method.load().pick(settings, LanguageModel(folder).shapes)
        globs = [shape.name for shape in picked]
    return LanguageModel(folder, layers=globs)


def scores(model: LanguageModel, editor: Any, shared: Path, file: str, size: int, seed: int) -> dict[str, float]:
    """Of one draw of facts: shares of prompts, 0 to 1, and the seconds that the edit took."""
    facts = list(read_fact_set(shared / "data" / "counterfact" / file).facts)
    random.Random(seed).shuffle(facts)
    facts = sorted(facts[:size], key=lambda fact: fact.edit_digest)
    examination = Examination(model, facts, batch_tokens=4096)
    before, base = examination.ask(), model.weights()
    started = time.perf_counter()
    shifts = editor.shifts(model, facts)
    seconds = time.perf_counter() - started
    model.set_weights([weight + shift for weight, shift in zip(base, shifts, strict=True)])
    report = examination.report(before, examination.ask())
    model.set_weights(base)
    of = {name: [x for x in report.results if x.kind == kind] for name, kind in KINDS.items()}
    found = {name: mean(x.after.accuracy for x in of[name]) for name in KINDS}
    found["unchanged"] = mean(x.unchanged for x in of["LS"])
    found["mean"] = 3 / sum(1 / max(found[name], 0.01) for name in ("ES", "GS", "unchanged"))
    found |= {f"{name} gen.": mean(float(x.after.exact_match or 0) for x in of[name]) for name in KINDS}
    found["unchanged gen."] = mean(float(x.unchanged_generated or 0) for x in of["LS"])
    return found | {"seconds": seconds}


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: mean(row[key] for row in rows) for key in rows[0]}


if __name__ == "__main__":
    main()
