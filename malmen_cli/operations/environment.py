"""What figures were made with: device, threads, versions."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch

from malmen_cli import __version__


def environment(device: str) -> dict[str, Any]:
    """What the figures of an entry were made with."""
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": {
            "malmen": __version__,
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
    }
