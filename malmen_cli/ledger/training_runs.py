"""Folders of training runs: features and the resumable state, and a note that says whose they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from malmen_cli.checkpoint.durable import write_durably
from malmen_cli.facts import printable
from malmen_cli.ledger.entry_rows import now

NOTE = "run.json"
_LARGEST = 1 << 16  # bytes


def write_note(folder: Path, model: str, facts: str, command: str) -> None:
    """Say in a run's folder which model is trained on which facts, for whoever finds it later."""
    note = {"model": model, "facts": facts, "command": command, "started_at": now()}
    write_durably(folder / NOTE, json.dumps(note, indent=1).encode())


def run_model(folder: Path) -> str | None:
    """The name of the model that a run is for; None where its folder does not say."""
    model = _note(folder).get("model")
    return model if isinstance(model, str) else None


def run_words(folder: Path) -> str:
    """A run in words."""
    note = _note(folder)
    if not note:
        return "an interrupted training run"
    started = str(note.get("started_at"))[:19].replace("T", " ")
    words = f"an interrupted training of {note.get('model')} on {note.get('facts')}, begun {started}"
    return printable(words, limit=None)


def _note(folder: Path) -> dict[str, Any]:
    try:
        with (folder / NOTE).open("rb") as file:
            note = json.loads(file.read(_LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}
