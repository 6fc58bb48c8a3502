"""The whole way on a real model and real facts: train, apply, check, revert."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest

from malmen_cli.config import resolve_training
from malmen_cli.facts import FactSet, read_fact_set
from malmen_cli.ledger import Ledger, create_workspace, verify_ledger
from malmen_cli.operations.apply import ApplyOptions, apply_facts
from malmen_cli.operations.models import register
from malmen_cli.operations.revert import revert_entry
from malmen_cli.operations.train import train_editor


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def checkpoint(shared_dir: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "cf-gpt2"
    shutil.copytree(shared_dir / "models" / "cf-gpt2", folder)
    for path in [folder, *folder.iterdir()]:
        path.chmod(path.stat().st_mode | 0o200)
    return folder


def test_a_minute_of_training_edits_facts_of_unseen_subjects_and_revert_undoes_it(
    shared_dir: Path, tmp_path: Path, checkpoint: Path
) -> None:
    training = read_fact_set(shared_dir / "data" / "counterfact" / "train.json")
    rows = json.loads((shared_dir / "data" / "counterfact" / "dev.json").read_text("utf-8"))
    (tmp_path / "facts.json").write_text(json.dumps(rows[:16]), "utf-8")
    facts = read_fact_set(tmp_path / "facts.json")
    base = digests(checkpoint)
    settings = resolve_training(
        "malmen", None, {"steps": 30, "facts_per_step": 64, "max_held_out": 64, "validate_every": 15}
    )
    with Ledger.open(create_workspace(tmp_path), writing=True) as ledger:
        model = register(ledger, "cf-gpt2", checkpoint).model
        train_editor(ledger, model, FactSet(training.facts[:1200], "train.json"), settings)
        applied = apply_facts(ledger, model, facts, ApplyOptions(), "apply")
        assert applied.check is not None and applied.entry is not None
        before, after = applied.check.before, applied.check.after
        assert before.edit_success is not None and before.edit_success <= 0.1
        assert after.edit_success is not None and after.edit_success >= 0.5
        assert after.locality is not None and after.locality >= 0.4
        assert sum(answer.after == answer.target for answer in applied.check.answers) >= 2
        assert digests(checkpoint) != base
        assert revert_entry(ledger, model, "HEAD", [], "revert").solved is False
        assert digests(checkpoint) == base
        assert not verify_ledger(ledger).problems
