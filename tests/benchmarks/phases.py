"""Where time goes: seconds by phase, of functions that are watched while they run."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Phases:
    """Seconds by phase: of functions that are watched while they run.

    Args:
        device: whose work is waited for at both ends of a phase. now: the clock, in seconds.

    Attributes:
        seconds: one phase inside another counted in both. own: counted in the inner one only.
    """

    def __init__(self, device: str, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.own: dict[str, float] = defaultdict(float)
        self._device, self._now = torch.device(device), now
        self._inside: list[float] = []  # seconds of inner phases, per phase that is open

    def clear(self) -> None:
        self.seconds.clear()
        self.own.clear()

    def sync(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def watch(self, owner: Any, name: str, phase: str) -> None:
        inner = getattr(owner, name)

        def timed(*args: Any, **settings: Any) -> Any:
            with self.phase(phase):
                return inner(*args, **settings)

        setattr(owner, name, timed)

    def watch_batches(self, owner: Any, name: str, phase: str) -> None:
        """The same of a generator, while it makes its next value."""
        inner = getattr(owner, name)

        def timed(*args: Any, **settings: Any) -> Iterator[Any]:
            batches = inner(*args, **settings)
            while True:
                with self.phase(phase):
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch

        setattr(owner, name, timed)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.sync()
        began = self._now()
        self._inside.append(0.0)
        yield
        self.sync()
        took = self._now() - began
        self.seconds[name] += took
        self.own[name] += took - self._inside.pop()
        if self._inside:
            self._inside[-1] += took
