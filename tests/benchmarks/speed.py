"""Meta-training and applying beside the official loop, in one run: seconds, facts per second, ratios.

    python tests/benchmarks/speed.py --shared ../shared --facts counterfact --rank 1920

A model of GPT-2-small's shape (124 M parameters, random weights: what is timed does not depend on their values, with
cf-gpt2's tokenizer), the last six blocks edited, real facts. In each repeat malmen, in every setting asked for, and the
official loop (`official_loop.py`) take turns at the same work:

- first epoch: malmen captures the facts' features and takes a step over them; the official loop takes its step;
- later epochs: malmen's step on features that are there, against the same official step, which knows no difference;
- apply: malmen captures and packs rows and solves, one layer at a time; the official loop caches, solves and adds.

The rows named `paper` have the same settings on both sides (no preserved keys, no edit loss); `defaults` is malmen as
it trains by default (edit loss, 8,192 preserved keys, rank 256) against the official loop at the rank given. bfloat16
is malmen's model in bfloat16 against the official loop in float32. Medians of --repeats.

On a GPU, with GPT-J's shape, both sides in bfloat16 as the official settings have it, and the GPU's peak rate, of which
the profile says what share the model's passes reach:

    python tests/benchmarks/speed.py --shared ../shared --shape gpt-j --device cuda --n-edits 1024 \\
        --applies 1024 8192 --dtypes bfloat16 --profile --peak 989

Not timed, on either side: tokens of training texts (an apply's are), validation, and what is made once per training:
the editor's start and what is made of its preserved keys. Both sides have the huge pages that malmen asks for.
--profile also prints where malmen's time goes, and the rate of the model's passes: the multiply-adds of its linear
layers, counted from its modules, over the seconds of the phases named *model*. --clock cpu counts processor time, for
a machine that has other work.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from phases import Phases
from speed_sides import Malmen, Official

from malmen_cli.config import TrainingConfig, resolve_training
from malmen_cli.editing.editor import Editor
from malmen_cli.editing.normal_equation import NormalEquation, Solution
from malmen_cli.facts import Fact
from malmen_cli.facts.reading import read_fact_set
from malmen_cli.language_models import language_model
from malmen_cli.language_models.host_memory import prefer_huge_pages
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.operations.rows import RowReader
from malmen_cli.training import step as training_step
from malmen_cli.training.features import Features
from malmen_cli.training.rows import TrainingRow, split_rows
from malmen_cli.training.step import MetaStep

FILES = {
    "zsre": ["zsre/mquake_questions_train.json", "zsre/knowedit_zsre_test.json"],
    "counterfact": ["counterfact/train.json", "counterfact/dev.json"],
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
HEADER = ["what", "settings", "facts", "malmen, s", "official, s", "malmen, facts/s", "official, facts/s", "ratio"]


def make_model(folder: Path, shared: Path, shape: str) -> Path:
    """Save GPT-2-small's shape, or a quarter of it to try this script with, or GPT-J's, with random weights."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPTJConfig, GPTJForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    if shape == "gpt-j":
        torch.set_default_dtype(torch.bfloat16)
        GPTJForCausalLM(GPTJConfig()).save_pretrained(folder)
        torch.set_default_dtype(torch.float32)
    else:
        sizes = {} if shape == "gpt2" else {"n_layer": 4, "n_embd": 192, "n_head": 4}
        GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(shared / "models/cf-gpt2").save_pretrained(folder)
    return folder


def read_facts(shared: Path, name: str) -> list[Fact]:
    """Facts with a rephrase and an unrelated prompt."""
    facts = [fact for file in FILES[name] for fact in read_fact_set(shared / "data" / file, on_conflict="first").facts]
    return [fact for fact in facts if fact.rephrases and fact.unrelated]


def many(facts: Sequence[Fact], count: int) -> list[Fact]:
    """As many facts of as many prompts: once the file is through, its prompts come again with a number before them."""
    rounds = (
        replace(fact, prompt=f"{turn}. {fact.prompt}" if turn else fact.prompt)
        for turn in range(count // len(facts) + 1)
        for fact in facts
    )
    return list(islice(rounds, count))


class Table:
    """A Markdown table that is printed row by row, and the clock that its seconds are read from."""

    def __init__(self, now: Callable[[], float], device: str) -> None:
        self._now, self._sync = now, Phases(device).sync
        print(f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}", flush=True)

    def seconds(self, work: Callable[..., object], *args: object) -> float:
        self._sync()
        began = self._now()
        work(*args)
        self._sync()
        return self._now() - began

    def row(self, what: str, settings: str, facts: int, ours: Sequence[float], theirs: Sequence[float]) -> None:
        a, b = statistics.median(ours), statistics.median(theirs)
        cells = [what, settings, f"{facts:,}", f"{a:.2f}", f"{b:.2f}", f"{facts / a:.1f}", f"{facts / b:.1f}"]
        print(f"| {' | '.join(cells)} | {b / a:.2f} |", flush=True)


class Profile:
    """Prints where malmen's seconds go; what is inside another phase is counted there and not in the outer one.

    Args:
        peak: floating-point operations per second of the device, or None.
    """

    def __init__(self, now: Callable[[], float], device: str, peak: float | None) -> None:
        self._now, self._phases, self._peak = now, Phases(device, now), peak
        self._phases.watch_batches(LanguageModel, "capture", "model, backward to rows")
        self._phases.watch_batches(LanguageModel, "capture_reference", "model, forward to references")
        self._phases.watch_batches(LanguageModel, "lower_states", "model, forward of lower blocks")
        for owner, name, phase in (
            (LanguageModel, "references", "model, forward"),
            (language_model, "reference_grads", "model, output head and losses"),
            (training_step, "reference_grads", "model, output head and losses"),
            (MetaStep, "_differentiated", "model, backward to weights"),
            (MetaStep, "_measure", "batches"),
            (MetaStep, "_back", "hyper-network, backward"),
            (MetaStep, "edited_weights", "weights to and fro"),
            (Malmen, "_update", "clip and Adam"),
            (Features, "rows", "reading rows"),
            (RowReader, "chunk", "reading rows"),
            (Editor, "value_diffs", "hyper-network, forward"),
            (NormalEquation, "update", "normal equation: rows"),
            (NormalEquation, "solve", "normal equation: solve"),
            (Solution, "gradients", "normal equation: gradients"),
        ):
            self._phases.watch(owner, name, phase)
        print("\n| what | all, s | of which | model passes, TFLOP/s |\n|---|---|---|---|")

    def of(self, what: str, flops: float, work: Callable[..., object], *args: object) -> None:
        self._phases.clear()
        self._phases.sync()
        began = self._now()
        work(*args)
        self._phases.sync()
        total = self._now() - began
        rate = flops / sum(seconds for name, seconds in self._phases.own.items() if name.startswith("model,"))
        used = "" if self._peak is None else f" ({rate / self._peak:.0%} of the peak)"
        parts = sorted(self._phases.own.items(), key=lambda part: -part[1])
        named = [(name, seconds) for name, seconds in parts if seconds >= total / 200]
        named.append(("the rest", total - sum(seconds for _, seconds in named)))
        cells = ", ".join(f"{name} {seconds:.2f} ({seconds / total:.0%})" for name, seconds in named)
        print(f"| {what} | {total:.2f} | {cells} | {rate / 1e12:.3f}{used} |", flush=True)


def training(
    table: Table, sides: Mapping[str, Malmen], official: Official, rows: Sequence[TrainingRow], repeats: int
) -> None:
    """First and later epochs, all sides in turn."""
    capture, step, theirs = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list), []
    for _ in range(repeats):
        for name, ours in sides.items():
            capture[name].append(table.seconds(ours.capture, rows))
            step[name].append(table.seconds(ours.step, rows))
        theirs.append(table.seconds(official.step, rows))
    for name in sides:
        first = [a + b for a, b in zip(capture[name], step[name], strict=True)]
        table.row("first epoch", name, len(rows), first, theirs)
    for name in sides:
        table.row("later epochs", name, len(rows), step[name], theirs)


def applying(
    table: Table, sides: Mapping[str, Malmen], official: Official, facts: Sequence[Fact], repeats: int
) -> None:
    """An apply of these facts, all sides in turn."""
    seconds, theirs = defaultdict[str, list[float]](list), []
    for _ in range(repeats):
        for name, ours in sides.items():
            seconds[name].append(table.seconds(ours.apply, facts))
        theirs.append(table.seconds(official.apply, facts))
        official.restore()
    for name in sides:
        table.row("apply", name, len(facts), seconds[name], theirs)


def settings_of(kind: str, options: argparse.Namespace) -> TrainingConfig:
    fixed = {"facts_per_step": options.n_edits, "sample_size": False}
    if kind == "defaults":
        return resolve_training("malmen", None, fixed)
    return resolve_training("paper", None, fixed | {"editor.rank": options.rank})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True)
    parser.add_argument("--facts", choices=FILES, default="counterfact")
    parser.add_argument("--shape", choices=["gpt2", "quarter", "gpt-j"], default="gpt2")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the device, for --profile")
    parser.add_argument("--rank", type=int, default=1920, help="of both sides' hyper-networks")
    parser.add_argument("--n-edits", type=int, default=512, help="facts per training step")
    parser.add_argument("--applies", type=int, nargs="*", default=[1000, 8000], help="facts per apply; none to skip")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=["paper", "defaults"], default=["paper", "defaults"])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--fused", action="store_true", help="the official side gets malmen's fused activation too")
    parser.add_argument(
        "--unused-loss", action="store_true", help="the official side hands labels to the model, as it does"
    )
    options = parser.parse_args()
    prefer_huge_pages()
    facts = read_facts(options.shared, options.facts)
    now = CLOCKS[options.clock]
    print(f"{options.facts}, {options.shape}, {options.device}, {options.clock} s, torch {torch.__version__}, ", end="")
    print(f"{torch.get_num_threads()} threads, official loop at rank {options.rank}\n")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder = make_model(work / "model", options.shared, options.shape)
        (work / "cache").mkdir()
        device = options.device
        models = {dtype: LanguageModel(folder, device=device, dtype=getattr(torch, dtype)) for dtype in options.dtypes}
        some = next(iter(models.values()))
        # Some are held out, and they are of whole subjects.
        split = split_rows(many(facts, options.n_edits + 200), some.tokenizing, share=0.01, largest=8, seed=0)
        rows = [row for row in split.train if row.unrelated][: options.n_edits]
        sides = {}
        for kind in options.kinds:
            config = settings_of(kind, options)
            for dtype, model in models.items():
                side = f"{kind}, {dtype}, rank {config.editor.rank}"
                sides[side] = Malmen(model, config, rows, work / f"features{len(sides)}")
        cache, fused, unused_loss = work / "cache", options.fused, options.unused_loss
        official = Official(folder, some, cache, rows, rank=options.rank, fused=fused, unused_loss=unused_loss)
        table = Table(now, device)
        training(table, sides, official, rows, options.repeats)
        for count in options.applies:
            applying(table, sides, official, many(facts, count), options.repeats)
        if options.profile:
            profile = Profile(now, device, options.peak and options.peak * 1e12)
            for side, ours in sides.items():
                profile.of(f"capture of {len(rows):,}, {side}", ours.capture_flops(rows), ours.capture, rows)
                profile.of(f"step of {len(rows):,}, {side}", ours.step_flops(rows), ours.step, rows)
                for count in options.applies:
                    some_facts = many(facts, count)
                    profile.of(f"apply of {count:,}, {side}", ours.apply_flops(some_facts), ours.apply, some_facts)


if __name__ == "__main__":
    main()
