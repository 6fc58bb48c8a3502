"""What `malmen plan` predicts of an apply, beside what the apply then takes.

    python tests/benchmarks/forecast.py --shared ../shared

Two models in float32: cf-gpt2, and one of GPT-2-small's shape (124 M parameters, random weights, cf-gpt2's tokenizer),
each with an editor of one training step. Facts are CounterFact's, other ones for every row. For every row three
commands in processes of their own: `malmen plan FILE --quick --json`, `malmen plan FILE --json`, `malmen apply FILE
--json`; then the apply is reverted, but for the last row of cf-gpt2, which adds one fact to 1,000. Of an apply the wall
time, the time that it computed for (of all its threads) and its largest resident set (getrusage) are taken. Of
`--repeats`, with other facts each, the shortest times and the largest sets stand in the table.

Plans tell what an undisturbed machine takes. Where other work shares it, compare with the computed time, which waiting
for the disk adds a little to.

Last, without a model: what is reckoned for GPT-J's shape, at this machine's rates.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from malmen_cli.config import TrainingConfig
from malmen_cli.facts import Fact
from malmen_cli.facts.reading import read_fact_set

HEAD = ["model, dtype", "new facts", "active then", "apply: wall s", "computed s", "full plan s", "/ computed"]
HEAD += ["quick plan s", "/ computed", "apply: MB", "full plan MB", "ratio", "quick plan MB", "ratio"]


@dataclass(frozen=True)
class Run:
    """One command: what it printed, seconds that passed and that it computed, bytes of its largest resident set."""

    said: Any
    wall: float
    computed: float
    peak: int


def malmen(folder: Path, *arguments: str | Path) -> Run:
    command = [sys.executable, "-m", "malmen_cli", *map(str, arguments), "--workspace", str(folder / ".malmen")]
    with tempfile.TemporaryFile() as out:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read().decode()
    if process.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {text[-2000:]}")
    said = json.loads(text) if "--json" in arguments else None
    peak = used.ru_maxrss if sys.platform == "darwin" else used.ru_maxrss * 1024
    return Run(said, wall, used.ru_utime + used.ru_stime, peak)


def make_world(name: str, dtype: str, folder: Path, shared: Path, preserved: int) -> None:
    """A workspace with the model and an editor of one training step."""
    shutil.copytree(shared / "models" / "cf-gpt2", folder / "model")
    if name != "cf-gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        (folder / "model" / "model.safetensors").unlink()
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config()).to(getattr(torch, dtype)).save_pretrained(folder / "model")
    (folder / "train.toml").write_text(
        f"steps = 1\nfacts_per_step = 64\nmax_held_out = 8\n[editor]\npreserved_keys = {preserved}\n"
    )
    subprocess.run([sys.executable, "-m", "malmen_cli", "init"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    malmen(folder, "models", "add", "model", folder / "model")
    write(folder / "training.jsonl", read_fact_set(shared / "data/counterfact/train.json").facts[-400:])
    malmen(folder, "train", folder / "training.jsonl", "--config", folder / "train.toml")


def write(path: Path, facts: tuple[Fact, ...]) -> Path:
    path.write_text("".join(f"{fact.canonical_json()}\n" for fact in facts), "utf-8")
    return path


def row(label: str, folder: Path, batches: list[tuple[Fact, ...]], keep: bool) -> list[str]:
    applied, full, quick = [], [], []
    for facts in batches:
        file = write(folder / "facts.jsonl", facts)
        quick.append(malmen(folder, "plan", file, "--quick", "--json").said["prediction"])
        plan = malmen(folder, "plan", file, "--json").said
        full.append(plan["prediction"])
        applied.append(malmen(folder, "apply", file, "--json"))
        active = plan["active"]
        if not keep:
            malmen(folder, "revert", "HEAD")
    wall, computed = min(run.wall for run in applied), min(run.computed for run in applied)
    peak = max(run.peak for run in applied)
    seconds = [min(plan["seconds"] for plan in plans) for plans in (full, quick)]
    memory = [max(plan["memory"] for plan in plans) for plans in (full, quick)]
    print(label, active, {k: round(v, 2) for k, v in full[0]["phases"].items()}, file=sys.stderr)
    print(label, active, {k: round(v, 2) for k, v in quick[0]["phases"].items()}, file=sys.stderr)
    cells = [label, f"{len(facts):,}", f"{active:,}", f"{wall:.1f}", f"{computed:.1f}"]
    for value in seconds:
        cells += [f"{value:.1f}", f"{value / computed:.2f}"]
    cells.append(f"{peak / 1e6:,.0f}")
    for value in memory:
        cells += [f"{value / 1e6:,.0f}", f"{value / peak:.2f}"]
    return cells


def gpt_j(shared: Path) -> None:
    """What applies to a model of GPT-J's shape would take here: its configuration alone, and rates measured with one of
    its blocks. Texts are CounterFact's by cf-gpt2's tokenizer."""
    from transformers import GPTJConfig

    from malmen_cli.language_models.arithmetic import Passes, arithmetic_of, passes
    from malmen_cli.language_models.edited_layers import edited_layers
    from malmen_cli.language_models.footprint import Job, footprint
    from malmen_cli.language_models.loading import auto_class, load_tokenizer
    from malmen_cli.language_models.tokenizing import CausalTokenizing
    from malmen_cli.operations.forecast import PHASES, Counts, LayerCounts, forecast
    from malmen_cli.operations.rates import measure

    config, dtype, device = GPTJConfig(architectures=["GPTJForCausalLM"]), torch.bfloat16, torch.device("cpu")
    with torch.device("meta"):
        model = auto_class(config).from_config(config)
    layers = edited_layers(model, "gptj", None)
    tokens = CausalTokenizing(load_tokenizer(shared / "models/cf-gpt2"), None)
    facts = read_fact_set(shared / "data/counterfact/train.json").facts[:1000]

    def asked(pairs: list[tuple[str, str]]) -> Passes:
        return passes(tokens.batches([tokens(*pair) for pair in pairs], 1024))

    own = asked([(fact.prompt, fact.target) for fact in facts])
    others = asked([(prompt, fact.target) for fact in facts for prompt in fact.rephrases])
    others += asked([(other.prompt, other.target) for fact in facts for other in fact.unrelated])
    first = layers[0].shape
    rates = measure(config, dtype, device, (first.d_in, first.d_out), folder=shared, length=12, start=5.0, texts=1e4)
    weights = sum(parameter.numel() for parameter in model.parameters()) * 2
    print(f"\nGPT-J's shape, bfloat16, on rates of {rates}\n", file=sys.stderr)
    head = ["GPT-J's shape, bfloat16", *(f"{phase} s" for phase in PHASES), "all s", "memory GB"]
    show(head)
    show(["---"] * len(head))
    for label, new, old in (("1,000 facts", 1000, 0), ("one fact more than 10,000", 1, 10_000)):
        part = new / len(facts)
        rows = [(round(own.labels * part) or 1, round(own.labels * (new + old) / len(facts))) for _ in layers]
        counts = Counts(
            model=arithmetic_of(model, layers),
            layers=tuple(
                LayerCounts(x.shape.d_in, x.shape.d_out, fresh, active, new + old, 8192, 2, 2)
                for x, (fresh, active) in zip(layers, rows, strict=True)
            ),
            capture=own.times(part),
            asked=(own + others).times(part),
            old=own.times(min(old, 256) / len(facts)),
            answers=Passes(min(new, 5), min(new, 5), 0, 12 * min(new, 5), min(new, 5)),
            texts=4 * new + min(old, 256),
            rank=256,
            blocks=2,
            weights=weights,
            checkpoint=weights,
            shards=weights,
            largest_shard=weights,
            editor=4 * sum(8192 * x.shape.d_in for x in layers),
        )
        seconds = forecast(counts, rates)
        peak = footprint(model, layers, Job("apply", facts=new + old), dtype).total
        cells = [label, *(f"{seconds[phase]:,.1f}" for phase in PHASES)]
        show([*cells, f"{sum(seconds.values()):,.0f}", f"{peak / 1e9:.1f}"])


def show(cells: list[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--models", nargs="*", choices=("cf-gpt2", "gpt2-small"), default=["cf-gpt2", "gpt2-small"])
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="of gpt2-small")
    parser.add_argument("--facts", nargs="+", type=int, default=[1, 64, 256, 1000])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--preserved-keys", type=int, default=TrainingConfig().editor.preserved_keys)
    parser.add_argument("--folder", type=Path, help="where to work; must not exist")
    options = parser.parse_args()
    facts = read_fact_set(options.shared / "data/counterfact/train.json").facts[:-400]
    show(HEAD)
    show(["---"] * len(HEAD))
    worlds = [
        (name, dtype) for name in options.models for dtype in (["float32"] if name == "cf-gpt2" else options.dtypes)
    ]
    for name, dtype in worlds:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            # In a process of its own: what this one has held counts as the peak of every process that it starts.
            arguments = (name, dtype, folder, options.shared, options.preserved_keys)
            maker = multiprocessing.get_context("spawn").Process(target=make_world, args=arguments)
            maker.start()
            maker.join()
            if maker.exitcode:
                raise SystemExit("the model was not made")
            place = 0
            for count in options.facts:
                if name != "cf-gpt2" and count > 256:
                    continue
                batches = [facts[place + i * count : place + (i + 1) * count] for i in range(options.repeats)]
                place += count * options.repeats
                show(row(f"{name}, {dtype}", folder, batches, keep=False))
            if name == "cf-gpt2":
                malmen(folder, "apply", write(folder / "facts.jsonl", facts[place : place + 1000]))
                batches = [facts[place + 1000 + i : place + 1001 + i] for i in range(options.repeats)]
                show(row(f"{name}, {dtype}", folder, batches, keep=True))
    gpt_j(options.shared)


if __name__ == "__main__":
    main()
