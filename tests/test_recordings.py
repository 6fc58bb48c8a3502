"""Whole sessions in a pseudo-terminal: the README's on a real model, and the demo; both are kept as recordings.

    MALMEN_RECORD=tests/recordings pytest tests/test_recordings.py

records them anew (asciicast v2, for asciinema).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from readme import console_blocks, differences, rerun
from recordings import played, recorded
from safetensors_folders import file_digests

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
TRAINING = {"--minutes 10": "--minutes 0.6"}
TRAINED_ON = 2000
"""What a test has no time for: so long a training, and the capture of all facts."""


@pytest.fixture
def place(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the README's session begins: a model and the facts of CounterFact.

    Its path is short: a terminal would break longer lines.
    """
    folder = tmp_path_factory.mktemp("s") / "session"
    folder.mkdir()
    shutil.copytree(shared_dir / "models" / "cf-gpt2", folder / "my-model")
    training = json.loads((shared_dir / "data" / "counterfact" / "train.json").read_text("utf-8"))
    (folder / "training-facts.json").write_text(json.dumps(training[:TRAINED_ON], indent=1))
    rows = json.loads((shared_dir / "data" / "counterfact" / "dev.json").read_text("utf-8"))
    for name, part in {"facts": rows[:8], "more-facts": rows[8:16], "held-out": rows[16:]}.items():
        (folder / f"{name}.json").write_text(json.dumps(part, indent=1))
    return folder


def shortened(command: str) -> str:
    for long, short in TRAINING.items():
        command = command.replace(long, short)
    return command


def test_the_session_of_the_readme(place: Path) -> None:
    blocks = console_blocks(README)
    commands = [step.command for block in blocks for step in block]
    assert [word for word in ("train", "plan", "apply", "eval", "diff", "revert") if f"malmen {word}" in str(commands)]
    before = file_digests(place / "my-model")
    with played(place, "session") as run:
        problems = rerun(blocks, place, replace=TRAINING, run=run)
    assert not problems, "\n".join(problems)
    # The session ends with every entry reverted.
    assert file_digests(place / "my-model") == before


def test_the_recorded_session_is_the_readmes() -> None:
    steps = [step for block in console_blocks(README) for step in block]
    found = recorded("session")
    assert [command for command, _ in found] == [shortened(step.command) for step in steps]
    pairs = zip(steps, found, strict=True)
    problems = [line for step, (_, shown) in pairs for line in differences(step.output, shown)]
    assert not problems, "\n".join(problems)


def test_the_demo(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    with played(folder, "demo") as run:
        shown = run("malmen demo; echo exit status $?", folder)
    assert shown[-1] == "exit status 0"
    [(command, before)] = recorded("demo")
    assert command == "malmen demo; echo exit status $?"
    problems = differences(before, shown)
    assert not problems, "\n".join(problems)
    assert not list(folder.iterdir())
