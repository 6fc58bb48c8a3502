"""What an apply takes above the loaded model, as the facts grow, and what one more fact on top of 10,000 takes.

    python tests/benchmarks/apply_memory.py --shared ../shared

A copy of cf-gpt2, an editor of --steps training steps, and generated facts: prompts of CounterFact about numbered
made-up subjects, all distinct, with targets of one token. Per number of facts an apply in a process of its own, from
reading the file to the entry, with no facts active before. Prints a Markdown table in MB and seconds:

- loaded: resident set right after the model and the editor are there. The facts were read before: with more facts it
  is larger, by what they take as Python objects; what reading the file added is given per fact, in bytes.
- peak above: the largest resident set from then on, less that. Linux's own high-water mark, reset then.
- peak by phase: the same mark, reset at the beginning of each phase. propose: reading the file and folding the history
  (all of it before the model is loaded); capture: rows, made and written; asking: before and after; solve; commit.

Then 10,000 facts are applied, and one more in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from malmen_cli.config import EditorConfig, TrainingConfig
from malmen_cli.facts import FactSet, read_fact_set
from malmen_cli.ledger import Ledger, create_workspace, find_workspace, store

SIZES = (1024, 4096, 16384, 64000)
ACTIVE = 10_000
PHASES = ("propose", "load", "capture", "asking", "solve", "commit")


def resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def high_water(reset: bool = False) -> int:
    """The largest resident set, bytes, since it was last reset."""
    status = Path("/proc/self/status").read_text()
    found = int(status.split("VmHWM:")[1].split()[0]) * 1024
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return found


class Phases:
    """Seconds in, and highest resident set during, each phase; and where the resident set stood when all was loaded."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.peaks = dict.fromkeys(PHASES, 0)
        self.loaded, self.overall = 0, 0
        self._inside: list[str] = []

    def _note(self) -> None:
        top = high_water(reset=True)
        self.overall = max(self.overall, top)
        if self._inside:
            self.peaks[self._inside[-1]] = max(self.peaks[self._inside[-1]], top)

    def watch(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: Any, **options: Any) -> Any:
            self._note()
            self._inside.append(name)
            began = time.perf_counter()
            try:
                return call(*arguments, **options)
            finally:
                took = time.perf_counter() - began
                self.seconds[name] += took
                self._note()
                self._inside.pop()
                if self._inside:  # the model is loaded when it is first asked for, by the capture
                    self.seconds[self._inside[-1]] -= took
                if name == "load":
                    self.loaded, self.overall = resident(), 0
                    self.peaks = dict.fromkeys(PHASES, 0)

        return instead


def made_up(shared: Path, count: int, targets: list[str], word: str) -> list[dict[str, str]]:
    """Facts about subjects that there are none of, in CounterFact's own words."""
    known = [fact for fact in read_fact_set(shared / "data/counterfact/train.json") if fact.subject in fact.prompt]
    facts = []
    for number in range(count):
        like = known[number % len(known)]
        subject = f"{word} {number}"
        prompt = like.prompt.replace(str(like.subject), subject)
        facts.append({"prompt": prompt, "target": targets[number % len(targets)], "subject": subject})
    return facts


def one_token_targets(shared: Path) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models/cf-gpt2")
    known = sorted({fact.target for fact in read_fact_set(shared / "data/counterfact/train.json")})
    return [target for target in known if len(tokenizer(f" {target}")["input_ids"]) == 1]


def prepare(folder: Path, shared: Path, steps: int) -> None:
    """A workspace with a copy of the model and an editor."""
    from malmen_cli.operations.models import register
    from malmen_cli.operations.train import train_editor

    shutil.copytree(shared / "models/cf-gpt2", folder / "model")
    for path in [folder / "model", *(folder / "model").iterdir()]:
        path.chmod(path.stat().st_mode | 0o200)
    known = read_fact_set(shared / "data/counterfact/train.json").facts[:512]
    settings = TrainingConfig(editor=EditorConfig(), steps=steps, facts_per_step=64, max_held_out=16)
    with Ledger.open(create_workspace(folder), writing=True) as ledger:
        model = register(ledger, "cf-gpt2", folder / "model").model
        train_editor(ledger, model, FactSet(known, "train.json"), settings)


def apply(folder: Path, file: Path) -> None:
    """One apply, from the file to the entry; prints what it took."""
    from malmen_cli.operations import active, workbench
    from malmen_cli.operations import apply as applying
    from malmen_cli.operations.checking import Questions

    phases = Phases()
    bench = workbench.Workbench
    began = time.perf_counter()
    with (
        patch.object(workbench, "load_base", phases.watch("load", workbench.load_base)),
        patch.object(bench, "capture", phases.watch("capture", bench.capture)),
        patch.object(bench, "solve", phases.watch("solve", bench.solve)),
        patch.object(Questions, "scores", phases.watch("asking", Questions.scores)),
        patch.object(Questions, "answers", phases.watch("asking", Questions.answers)),
        patch.object(Questions, "check", phases.watch("asking", Questions.check)),
        patch.object(applying, "propose", phases.watch("propose", active.propose)),
        patch.object(applying, "commit_entry", phases.watch("commit", applying.commit_entry)),
        Ledger.open(find_workspace(folder / ".malmen"), writing=True) as ledger,
    ):
        with ledger.read() as db:
            model = store.only_model(db)
        before = resident()
        facts = phases.watch("propose", read_fact_set)(file)
        read = resident() - before
        applied = applying.apply_facts(ledger, model, facts, applying.ApplyOptions(), "malmen apply")
        assert applied.entry is not None
    phases._note()
    print(
        json.dumps(
            {
                "total": time.perf_counter() - began,
                "facts": len(facts),
                "read": read,
                "loaded": phases.loaded,
                "peak": phases.overall,
                "seconds": phases.seconds,
                "peaks": phases.peaks,
            }
        )
    )


def child(*words: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *words]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(said.splitlines()[-1]) if said.strip() else {}
    return found


def row(label: str, found: dict[str, Any]) -> str:
    cells = [label, f"{found['loaded'] / 1e6:,.0f}", f"{found['read'] / found['facts']:,.0f}"]
    cells += [f"{(found['peak'] - found['loaded']) / 1e6:,.1f}"]
    for phase in PHASES[2:]:
        cells.append(f"{(found['peaks'][phase] - found['loaded']) / 1e6:,.1f}")
    cells += [f"{found['seconds'][phase]:.1f}" for phase in PHASES]
    rest = found["total"] - sum(found["seconds"].values())
    return "| " + " | ".join([*cells, f"{rest:.1f}", f"{found['total']:.1f}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/cf-gpt2 and data/counterfact")
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--active", type=int, default=ACTIVE, help="facts that one more is added to; 0 for none")
    parser.add_argument("--steps", type=int, default=2, help="training steps of the editor")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    shared = options.shared.resolve()
    if options.folder is not None:
        return (
            prepare(options.folder, shared, options.steps) if not options.file else apply(options.folder, options.file)
        )
    heads = ["facts", "loaded", "bytes read per fact", "peak above", *(f"{phase}: peak" for phase in PHASES[2:])]
    heads += [*(f"{phase}: s" for phase in PHASES), "rest: s", "all: s"]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads), flush=True)
    targets = one_token_targets(shared)
    common = ["--shared", str(shared), "--steps", str(options.steps)]
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "home"
        home.mkdir()
        child(*common, "--folder", str(home))
        home.rename(Path(name) / "kept")  # paths are the ledger's: each apply is given a copy under the same name

        def fresh() -> None:
            shutil.rmtree(home, ignore_errors=True)
            shutil.copytree(Path(name) / "kept", home)

        def measured(count: int, word: str) -> dict[str, Any]:
            file = Path(name) / "facts.jsonl"
            lines = (json.dumps(fact) for fact in made_up(shared, count, targets, word))
            file.write_text("\n".join(lines) + "\n")
            return child(*common, "--folder", str(home), "--file", str(file))

        for size in options.sizes:
            fresh()
            print(row(f"{size:,}", measured(size, "Quon")), flush=True)
        if options.active:
            fresh()
            print(row(f"{options.active:,}", measured(options.active, "Quon")), flush=True)
            print(row(f"1, and {options.active:,} active", measured(1, "Zimt")), flush=True)


if __name__ == "__main__":
    main()
