"""The sidecar `.malmen.json`: says beside an edited checkpoint which ledger edited it.

It is there while the checkpoint differs from the base, written before the first byte changes. Another ledger that
registers such a folder warns, and keeps the earlier sidecar inside its own to put it back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from malmen_cli.checkpoint.durable import remove_durably, write_durably
from malmen_cli.ledger.database import Ledger
from malmen_cli.ledger.records import ModelRecord

SIDECAR = ".malmen.json"
_LARGEST = 1 << 20  # bytes


def read_sidecar(folder: Path) -> dict[str, Any] | None:
    """The sidecar's content; None without one, an empty table for one that cannot be made sense of."""
    path = folder / SIDECAR
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_LARGEST))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        content = None
    return content if isinstance(content, dict) else {}


def refresh_sidecar(ledger: Ledger, model: ModelRecord, *, edited: bool) -> None:
    """Make the sidecar say what holds: that this ledger has edited the checkpoint, or (again) what stood before."""
    path = model.path / SIDECAR
    current = read_sidecar(model.path)
    ours = {"ledger": ledger.id(), "model": model.name, "base_digest": model.base_digest}
    is_ours = current is not None and ours.items() <= current.items()
    if edited and not is_ours:
        write_durably(path, _bytes(ours | {"workspace": str(ledger.workspace.root), "earlier": current}))
    elif not edited and current is not None and is_ours:
        if current.get("earlier"):
            write_durably(path, _bytes(current["earlier"]))
        else:
            remove_durably(path)


def warning_about(folder: Path) -> str | None:
    """What to tell a user who registers a folder that a ledger has edited; None for one without a sidecar."""
    sidecar = read_sidecar(folder)
    if sidecar is None:
        return None
    return (
        f"{folder} was edited by the malmen workspace {sidecar.get('workspace', 'of somebody else')!a}: "
        "its edits become part of this base, and neither ledger can edit after the other"
    )


def _bytes(content: object) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
