"""What the device's fast precision costs in quality: the same editor trained and its facts captured in both.

    python tests/benchmarks/precision.py --shared ../shared --steps 150

Per dtype and seed: `malmen train --dtype` on CounterFact's training file, as many steps from the same seed; then sets
of facts of its dev file are captured in that dtype and edited, in memory, into the float32 checkpoint, which is scored
in float32. Prints a Markdown table: means over all sets of a size, and facts trained on per second of the steps.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from real_edits import malmen, row

from malmen_cli.editing.editor import Editor
from malmen_cli.evaluation.metrics import token_accuracy
from malmen_cli.facts import Fact
from malmen_cli.facts.reading import read_fact_set
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.ledger import Ledger, find_workspace, store
from malmen_cli.operations.editors import load_editor

DTYPES = ("float32", "bfloat16")
PLAIN = ("float32", "float32")


def edited(model: LanguageModel, captured_by: LanguageModel, editor: Editor, facts: Sequence[Fact]) -> list[float]:
    """ES, GS and LS of some facts, edited into `model` and out again."""
    tokens = model.tokenizing
    base = model.weights()
    equations = [editor.equation(layer) for layer in range(len(base))]
    for _, rows in captured_by.capture([tokens(fact.prompt, fact.target) for fact in facts]):
        for layer, (keys, grads) in enumerate(zip(rows.keys, rows.value_grads, strict=True)):
            equations[layer].update(keys, editor.value_diffs(layer, keys, grads))
    shifts = [editor.solve(layer, equation).param_shift for layer, equation in enumerate(equations)]
    model.set_weights([weight + shift.float() for weight, shift in zip(base, shifts, strict=True)])
    asked = [
        [tokens(fact.prompt, fact.target) for fact in facts],
        [tokens(prompt, fact.target) for fact in facts for prompt in fact.rephrases],
        [tokens(other.prompt, other.target) for fact in facts for other in fact.unrelated],
    ]
    scores = [mean(token_accuracy(model, texts)) for texts in asked]
    model.set_weights(base)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/cf-gpt2 and data/counterfact")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 64, 250])
    options = parser.parse_args()
    shared = options.shared.resolve()
    data = shared / "data" / "counterfact"
    facts = read_fact_set(data / "dev.json").facts
    print(
        row(
            "seed, trained in, captured in",
            [*(f"{size} facts, {len(facts) // size} sets" for size in options.sizes), "facts / s"],
        )
    )
    print(row("---", ["---"] * (len(options.sizes) + 1)))
    found: dict[tuple[str, str], list[list[list[float]]]] = {}
    for seed in options.seeds:
        for dtype in DTYPES:
            with tempfile.TemporaryDirectory() as name, torch.no_grad():
                folder = Path(name)
                shutil.copytree(shared / "models" / "cf-gpt2", folder / "model")
                malmen("init", cwd=folder)
                malmen("models", "add", "cf-gpt2", "model", "-q", cwd=folder)
                budget = ["--steps", str(options.steps), "--seed", str(seed), "--dtype", dtype]
                trained = json.loads(malmen("train", str(data / "train.json"), *budget, "--json", cwd=folder))
                rate = f"{trained['facts_seen'] / trained['seconds']:.1f}"
                with Ledger.open(find_workspace(folder / ".malmen")) as ledger, ledger.read() as db:
                    record, model = store.editor(db, trained["editor"]), store.only_model(db)
                editor, _ = load_editor(folder / ".malmen" / "editors" / record.id, model, record)
                scored = LanguageModel(folder / "model")
                for captured in DTYPES:
                    captured_by = LanguageModel(folder / "model", dtype=getattr(torch, captured))
                    means = []
                    for size in options.sizes:
                        sets = [facts[i * size : (i + 1) * size] for i in range(len(facts) // size)]
                        scores = [edited(scored, captured_by, editor, part) for part in sets]
                        means.append([mean(values) for values in zip(*scores, strict=True)])
                    found.setdefault((dtype, captured), []).append(means)
                    print(row(f"{seed}, {dtype}, {captured}", [*map(triple, means), rate]), flush=True)
    for both in found:
        points = [
            [100 * (mean(s[i][k] for s in found[both]) - mean(s[i][k] for s in found[PLAIN])) for k in range(3)]
            for i in range(len(options.sizes))
        ]
        cells = [" / ".join(f"{x:+.1f}" for x in values) for values in points]
        print(row(f"points above {PLAIN[0]}, mean: {', '.join(both)}", [*cells, ""]))


def triple(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.3f}" for value in values)


if __name__ == "__main__":
    main()
