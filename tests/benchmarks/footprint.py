"""The memory that malmen plans from a model's configuration, beside what the work then takes.

    python tests/benchmarks/footprint.py

A model of GPT-2-small's shape (124 M parameters, random weights, the demo's tokenizer) in float32 and bfloat16. An
editor is trained for one step, facts are applied and evaluated, each in a process of its own, whose largest resident
set (the kernel's VmHWM, since ru_maxrss begins with the parent's) stands beside the plan. Prints a Markdown table, MB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch

from malmen_cli.config import EditorConfig, TrainingConfig
from malmen_cli.demo import DATA
from malmen_cli.facts import Fact, FactSet
from malmen_cli.facts.reading import read_fact_set
from malmen_cli.language_models.footprint import Footprint, job_of, plan_memory
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.ledger import Ledger, create_workspace, find_workspace, store
from malmen_cli.operations.spent import resident_peak

PARTS = ["weights", "base_copies", "batch", "editor", "solve", "rows", "saving", "libraries"]


def make_model(folder: Path, dtype: str) -> Path:
    from transformers import GPT2Config, GPT2LMHeadModel

    shutil.copytree(DATA / "model", folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_positions=256)).to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def facts_for(count: int) -> FactSet:
    known = read_fact_set(DATA / "training.jsonl").facts
    return FactSet(known[:count], "facts")


def settings(options: argparse.Namespace) -> TrainingConfig:
    editor = EditorConfig(preserved_keys=options.preserved_keys)
    return TrainingConfig(editor=editor, steps=1, facts_per_step=options.facts, sample_size=False, max_held_out=16)


def work(name: str, folder: Path, options: argparse.Namespace) -> None:
    """One command's work, in this process; prints its peak, bytes."""
    from malmen_cli.operations.apply import ApplyOptions, apply_facts
    from malmen_cli.operations.evaluated import EvaluationOptions
    from malmen_cli.operations.evaluation import evaluate_file
    from malmen_cli.operations.models import register
    from malmen_cli.operations.train import train_editor

    with Ledger.open(find_workspace(folder / ".malmen"), writing=True) as ledger:
        if name == "register":
            register(ledger, "model", folder / "model")
        with ledger.read() as db:
            model = store.only_model(db)
        if name == "train":
            train_editor(ledger, model, facts_for(options.rows), settings(options))
        if name == "apply":
            apply_facts(ledger, model, facts_for(options.facts), ApplyOptions(sample=0), "malmen apply")
        if name == "eval":
            evaluate_file(ledger, model, facts_for(options.facts), EvaluationOptions(n_edits=options.facts))
    print(json.dumps({"peak": resident_peak()}))


def planned(name: str, folder: Path, options: argparse.Namespace) -> Footprint:
    facts = options.rows if name == "train" else options.facts
    kind = "train" if name == "train" else "eval" if name == "eval" else "apply"
    job = job_of(kind, settings(options).model_dump(), facts=facts)
    # As `malmen plan` does: by how long the texts are.
    tokenizing = LanguageModel(folder / "model").tokenizing
    asked = [tokenizing(*text) for fact in facts_for(facts) for text in texts_of(fact)]
    tokens, labels = mean(len(text.input_ids) for text in asked), mean(text.supervised for text in asked)
    return plan_memory(folder / "model", None, replace(job, tokens=tokens, labels=labels))


def texts_of(fact: Fact) -> list[tuple[str, str]]:
    """Every prompt of a fact, with what is expected after it."""
    own = [(prompt, fact.target) for prompt in (fact.prompt, *fact.rephrases)]
    return own + [(other.prompt, other.target) for other in fact.unrelated]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--facts", type=int, default=64, help="of an apply, an evaluation and a training step")
    parser.add_argument("--rows", type=int, default=120, help="facts to train on")
    parser.add_argument("--preserved-keys", type=int, default=256)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, options.folder, options)
    print("| dtype | work | " + " | ".join(PARTS) + " | planned | taken | planned / taken |")
    print("|" + "---|" * (len(PARTS) + 5))
    for dtype in options.dtypes:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            make_model(folder / "model", dtype)
            create_workspace(folder)
            for what in ("register", "train", "apply", "eval"):
                command = [sys.executable, __file__, *sys.argv[1:], "--work", what, "--folder", str(folder)]
                said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                taken = json.loads(said)["peak"]
                if what == "register":
                    continue
                plan = planned(what, folder, options)
                cells = [dtype, what, *(f"{getattr(plan, part) / 1e6:,.0f}" for part in PARTS)]
                cells += [f"{plan.total / 1e6:,.0f}", f"{taken / 1e6:,.0f}", f"{plan.total / taken:.2f}"]
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
