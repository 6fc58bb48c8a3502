"""What wins locality: malmen's defaults, its paper's recipe, ablations and other methods, on the same facts.

    python tests/benchmarks/locality.py --shared ../shared --minutes 5 --seeds 0 1 2 --jobs 2 --out locality.jsonl

On cf-gpt2: editors are trained on CounterFact's training file, less the records that share a prompt with the dev file
(a quarter of whose unrelated prompts are there), as many minutes each, and scored on draws of the dev file, the same
for everybody, which share no fact; `malmen eval` edits them in memory. Prints a Markdown table as runs
end, then means over seeds. ES, GS and LS, LS being *unchanged from the base*, teacher-forced and generated, and the
harmonic mean of the six.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from method_comparison import compare, options_of
from method_runs import Contender, Record, Task, draws_of


def _variant(about: str, *flags: str, **settings: Any) -> Contender:
    return Contender(about, settings=settings, flags=flags)


VARIANTS: Mapping[str, Contender] = {
    "defaults": Contender("malmen's defaults, which were chosen by single runs on these very files"),
    "paper": _variant("`--recipe paper`, chosen by the paper for GPT-J and T5-XL", "--recipe", "paper"),
    "paper-64": _variant(
        "`--recipe paper` with steps of 64 facts, of which there are more in the same time",
        *("--recipe", "paper", "--facts-per-step", "64"),
    ),
    "paper-tuned": _variant(
        "`--recipe paper` with steps of 64 facts, step size 1e-3, learning rate 1e-4: the best of its code",
        *("--recipe", "paper", "--facts-per-step", "64", "--learning-rate", "1e-4"),
        editor={"initial_step_size": 1e-3},
    ),
    "no-preserved-keys": _variant("no preserved keys", editor={"preserved_keys": 0}),
    "preserved-512": _variant("512 preserved keys", editor={"preserved_keys": 512}),
    "preserved-2048": _variant("2,048 preserved keys", editor={"preserved_keys": 2048}),
    "power-0": _variant("alpha starts the same for every number of rows", editor={"initial_power": 0.0}),
    "power-0.75": _variant("alpha starts as n^0.75", editor={"initial_power": 0.75}),
    "power-1": _variant("alpha starts proportional to the number of rows", editor={"initial_power": 1.0}),
    "strength-1": _variant("alpha / n starts at 1, of 32 rows", editor={"initial_strength": 1.0}),
    "strength-16": _variant("alpha / n starts at 16, of 32 rows", editor={"initial_strength": 16.0}),
    "change-0.1": _variant("|d| starts at a tenth of what the layer puts out", editor={"initial_change": 0.1}),
    "scalars-0.01": _variant("learning rate 1e-2 of step size, ridge and alpha", scalar_learning_rate=1e-2),
    "slow-scalars": _variant(
        "ridge, strength and step sizes learn at 1e-2, from p = 0.75 and ten times the ridge",
        scalar_learning_rate=1e-2,
        editor={"initial_power": 0.75, "initial_ridge": 1.5},
    ),
    "always-256": _variant("every step edits 256 facts, not 1 to 256", sample_size=False),
    "facts-64": _variant("steps of 1 to 64 facts", facts_per_step=64),
    "facts-1024": _variant("steps of 1 to 1,024 facts", facts_per_step=1024),
    "locality-0.4": _variant("locality coefficient 0.4", locality=0.4),
    "locality-4": _variant("locality coefficient 4", locality=4.0),
    "locality-8": _variant("locality coefficient 8", locality=8.0),
    "locality-16": _variant("locality coefficient 16", locality=16.0),
    "no-edit-loss": _variant("no loss on the edit prompts themselves", edit=0.0),
    "saturation-0": _variant("losses count in full, however large", saturation=0.0, locality=1.2),
    "saturation-1": _variant("losses are saturated twice as much", saturation=1.0),
    "end-of-text": _variant("the end of the answer is supervised", end_of_text=True),
    "bfloat16": _variant("the language model runs in bfloat16", dtype="bfloat16"),
    "one-block": _variant("hyper-networks of one block", editor={"blocks": 1}),
    "rank-64": _variant("hyper-networks of rank 64", editor={"rank": 64}),
    "batch-loss": _variant("losses are token means per batch, as the paper's", reduction="batch"),
    "last-layer": _variant("layer 5 alone", "--layers", "transformer.h.5.mlp.c_proj"),
    "middle-layers": _variant(
        "layers 2 to 4", *(part for layer in "234" for part in ("--layers", f"transformer.h.{layer}.mlp.c_proj"))
    ),
    "all-layers": _variant("layers 0 to 5", "--layers", "transformer.h.*.mlp.c_proj"),
    "mend": Contender("the same hyper-network, losses and training; outer products summed", "mend"),
}
# Their settings are in `malmen_cli/methods/settings.py`, with where each comes from.
METHODS: Mapping[str, Contender] = {
    "ft": Contender(
        "fine-tuning, settings of the MALMEN paper's baseline for GPT-J, at which this model hardly moves", "ft"
    ),
    "ft-tuned": Contender(
        "fine-tuning, settings chosen on facts of CounterFact's training file and this model, at 64 and 256 facts",
        "ft",
        {"learning_rate": 2e-3, "epochs": 10, "batch_facts": 16},
    ),
    "locft-bf": Contender("settings chosen as those of ft-tuned", "locft-bf"),
    "ultraedit": Contender(
        "step size by the scale of the model's outputs, calibrated on the facts edited", "ultraedit", random=False
    ),
    "memit": Contender(
        "lambda of its official code for GPT-J, at which this model hardly moves; layers 0 and 1",
        "memit",
        {"layers": ["transformer.h.0.mlp.c_proj", "transformer.h.1.mlp.c_proj"]},
        random=False,
    ),
    "memit-tuned": Contender(
        "lambda, layer and no contexts: chosen as those of ft-tuned, at 64 facts; keys of WikiText-2",
        "memit",
        {"layers": ["transformer.h.1.mlp.c_proj"], "covariance_weight": 15.0, "prefixes": []},
        random=False,
    ),
}


PROMPTS = ("prompt", "rephrase_prompt", "locality_prompt")


def apart(training: Sequence[Record], prompts: set[str]) -> list[Record]:
    """The training records without those that share a prompt of any kind; a quarter of the unrelated prompts do."""
    return [record for record in training if prompts.isdisjoint(record[kind] for kind in PROMPTS)]


def task(shared: Path, sizes: list[int], draws: int) -> Task:
    """CounterFact on cf-gpt2; the dev file in one order for everybody."""
    facts = shared / "data" / "counterfact"
    scored = json.loads((facts / "dev.json").read_text("utf-8"))
    random.Random(0).shuffle(scored)
    prompts = {record[kind] for record in scored for kind in PROMPTS}
    training = apart(json.loads((facts / "train.json").read_text("utf-8")), prompts)
    print(f"{len(training):,} facts to train on, {len(scored):,} to draw those to score from.\n")
    return Task(
        name="CounterFact on cf-gpt2",
        checkpoint=shared / "models" / "cf-gpt2",
        training=training,
        draws=draws_of(scored, sizes, draws),
        text=shared / "data" / "text" / "wikitext2_test.txt",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options_of(parser, list(VARIANTS), list(METHODS))
    options = parser.parse_args()
    compare(task(options.shared.resolve(), options.sizes, options.draws), {**VARIANTS, **METHODS}, options)


if __name__ == "__main__":
    main()
