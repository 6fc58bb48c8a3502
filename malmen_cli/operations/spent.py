"""What a piece of work takes: seconds, and memory at its peak."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_OWN = Path("/proc/self")


class Spent:
    """What was spent so far; whole once the `spending` block has ended.

    Attributes:
        seconds: wall time. peak_bytes: on a GPU the most memory allocated there; on a CPU the most that was resident of
            the whole process, None where the system does not tell.
    """

    seconds = 0.0
    peak_bytes: int | None = None


@contextmanager
def spending(device: torch.device) -> Iterator[Spent]:
    """Measure what the body spends on a device, and this process beside it."""
    spent = Spent()
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        (_OWN / "clear_refs").write_text("5")  # the kernel's peak of this process starts again from what it holds now
    begun = time.perf_counter()
    yield spent
    if on_gpu:
        torch.cuda.synchronize(device)
    spent.seconds = time.perf_counter() - begun
    spent.peak_bytes = torch.cuda.max_memory_allocated(device) if on_gpu else resident_peak()


def resident_peak() -> int | None:
    """Bytes of the largest resident set of this process, since `spending` began where it did; None where the system
    does not tell. Not `ru_maxrss`, which begins with what the process was that started this one."""
    try:
        lines = (_OWN / "status").read_text("ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else None
