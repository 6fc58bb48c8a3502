"""What figures were made with: device, threads, versions."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch

from malmen_cli import __version__
from malmen_cli.errors import UsageError
from malmen_cli.operations.models import pick_device

MOST_THREADS = 1024
"""That are started because an entry says so."""


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


@contextmanager
def as_it_was(details: Mapping[str, Any]) -> Iterator[str]:
    """With the threads of an entry's `environment`; yields its device, or the CPU where that is not there."""
    device, wanted = details.get("device"), details.get("threads")
    threads = torch.get_num_threads()
    try:
        device = pick_device(device) if isinstance(device, str) else "cpu"
    except UsageError:
        device = "cpu"
    if isinstance(wanted, int) and 0 < wanted <= MOST_THREADS:
        torch.set_num_threads(wanted)
    try:
        yield device
    finally:
        torch.set_num_threads(threads)
