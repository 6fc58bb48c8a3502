"""Running a target over inputs and counting what came of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from fuzz_targets import Defect, Target

SLOWEST = 60  # seconds: an input that takes longer counts as one that hangs, on a loaded machine too


@dataclass
class Tried:
    """A target and its counts. Called with an input, it passes on what escapes, after counting it."""

    target: Target
    inputs: int = 0
    accepted: int = 0
    uncaught: int = 0
    seconds: float = 0.0
    slowest: float = field(default=0.0)

    def __call__(self, data: bytes) -> None:
        self.inputs += 1
        began = time.monotonic()
        try:
            with _limited():
                self.accepted += bool(self.target(data))
        except Exception:
            self.uncaught += 1
            raise
        finally:
            taken = time.monotonic() - began
            self.seconds, self.slowest = self.seconds + taken, max(self.slowest, taken)

    def row(self) -> dict[str, object]:
        """For a table of figures."""
        return {
            "inputs": self.inputs,
            "accepted": self.accepted,
            "uncaught": self.uncaught,
            "seconds": round(self.seconds, 1),
            "slowest, s": round(self.slowest, 2),
        }


@contextmanager
def _limited() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Defect(f"longer than {SLOWEST} s for one input")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SLOWEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
