"""What asking before and after an apply takes, with and without the hidden states that are kept between.

    python tests/benchmarks/asking.py

A model of GPT-2-small's shape (124 M parameters, random weights, the demo's tokenizer; the last six of twelve blocks
are edited), an editor of one training step, and --facts facts with a rephrase and an unrelated prompt each. Applied in
turn as malmen does it and with nothing kept, so that each prompt runs through every block each time; with a revert in
between, and always other facts. Prints a Markdown table: processor seconds by phase, and ratios.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from ledger_cost import fresh_facts, world
from phases import Phases

from malmen_cli.facts import Fact, FactSet, Unrelated
from malmen_cli.ledger import Ledger, ModelRecord
from malmen_cli.operations import apply as applying
from malmen_cli.operations import workbench
from malmen_cli.operations.checking import Questions
from malmen_cli.operations.revert import revert_entry

PHASES = ("capture", "ask before", "solve", "ask after", "rest")


def facts(count: int, number: int) -> FactSet:
    def with_prompts(fact: Fact) -> Fact:
        unrelated = Unrelated(f"Elsewhere {fact.prompt}", "nobody")
        return replace(fact, rephrases=(f"It is said that {fact.prompt}",), unrelated=(unrelated,))

    return FactSet(tuple(map(with_prompts, fresh_facts(count, number))), "facts.jsonl")


def apply(ledger: Ledger, model: ModelRecord, asked: FactSet, phases: Phases) -> dict[str, float]:
    phases.clear()
    began = time.process_time()
    applying.apply_facts(ledger, model, asked, applying.ApplyOptions(), "malmen apply")
    whole = time.process_time() - began
    found = {name: phases.own[name] for name in PHASES[:-1]}
    revert_entry(ledger, model, "HEAD", [], "malmen revert HEAD")
    return {**found, "rest": whole - sum(found.values()), "all": whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    phases = Phases("cpu", time.process_time)
    phases.watch(workbench.Workbench, "capture", "capture")
    phases.watch(workbench.Workbench, "solve", "solve")
    phases.watch(Questions, "scores", "ask before")
    phases.watch(Questions, "check", "ask after")
    runs: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as name, world("gpt2-small", Path(name)) as (ledger, record):
        for repeat in range(options.repeats):
            runs[True].append(apply(ledger, record, facts(options.facts, 2 * repeat), phases))
            with patch.object(workbench, "states_limit", return_value=0):
                runs[False].append(apply(ledger, record, facts(options.facts, 2 * repeat + 1), phases))
    least = {kept: {name: min(run[name] for run in some) for name in some[0]} for kept, some in runs.items()}
    print("| hidden states | " + " | ".join(least[True]) + " |\n|" + "---|" * (len(least[True]) + 1))
    for label, kept in (("kept", True), ("nothing kept", False)):
        print(f"| {label} | " + " | ".join(f"{seconds:.1f}" for seconds in least[kept].values()) + " |")
    print("| ratio | " + " | ".join(f"{least[False][name] / least[True][name]:.2f}" for name in least[True]) + " |")


if __name__ == "__main__":
    main()
