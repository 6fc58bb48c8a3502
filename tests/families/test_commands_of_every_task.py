"""The same commands, as a user types them, edit a causal model, a sequence-to-sequence model and a classifier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from family_models import FAMILIES, save_family_model
from safetensors_folders import file_digests
from tiny_models import Fact, make_claims, make_facts, run_program, write_facts

# Command, and the statuses it may end with: two steps of training do not promise that the facts are said.
COMMANDS = {
    "malmen init": {0},
    "malmen models add my-model ./model": {0},
    "malmen train training-facts.jsonl --steps 2": {0},
    "malmen apply facts.jsonl": {0, 3},
    "malmen eval HEAD --json": {0},
    "malmen diff --exit-code --json": {4},
    "malmen revert HEAD": {0},
    "malmen diff --exit-code": {0},
    "malmen verify": {0},
}


@pytest.mark.parametrize("name", ["phi3", "t5_gated", "bert"])
def test_the_same_commands_edit_models_of_every_task(name: str, tmp_path: Path) -> None:
    folder = save_family_model(tmp_path / "model", name, dtype="bfloat16")
    write_facts(tmp_path / "training-facts.jsonl", some_facts(name, 24, 4000))
    write_facts(tmp_path / "facts.jsonl", some_facts(name, 3, 4))
    before = file_digests(folder)
    printed = {line: run(line, statuses, tmp_path) for line, statuses in COMMANDS.items()}
    told = {line.split()[1]: json.loads(out) for line, out in printed.items() if line.endswith("--json")}
    assert told["eval"]["scored"] == len(told["diff"]["facts"]["added"]) == 3
    assert len(told["diff"]["tensors"]) == len(FAMILIES[name].edited) * FAMILIES[name].blocks
    assert "Applied as" in printed["malmen apply facts.jsonl"]
    assert file_digests(folder) == before


def some_facts(name: str, count: int, start: int) -> list[Fact]:
    return (make_claims if FAMILIES[name].task == "classification" else make_facts)(count, start)


def run(line: str, statuses: set[int], folder: Path) -> str:
    status, out, err = run_program(folder, *line.split()[1:])
    assert status in statuses, f"{line}: {status}\n{err}"
    assert "Traceback" not in err and "warning" not in err.lower(), err
    return out
