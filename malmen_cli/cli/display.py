"""Progress on stderr: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from malmen_cli.cli.output import say
from malmen_cli.cli.style import is_live

if TYPE_CHECKING:
    from malmen_cli.training.loop import StepReport
    from malmen_cli.training.validation import Validation

SECONDS_BETWEEN_LINES = 30.0


class BarDisplay:
    """Called with (what, done, total); the bar is gone, and the cursor back, when the `with` block ends."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> BarDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if is_live(sys.stderr):
            self.bar(what, done, total)
        elif time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            say(f"{what}: {done:,} of {total:,}")

    def bar(self, what: str, done: int, total: int) -> None:
        """Show so much of it as a bar; nothing where that is no terminal."""
        if not is_live(sys.stderr):
            return
        if self._progress is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            # What is printed while the bar is there stays on the stream it was meant for.
            self._progress = Progress(
                *columns,
                console=Console(stderr=True, emoji=False),
                transient=True,
                redirect_stdout=False,
                refresh_per_second=4,
            )
            self._progress.start()
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)


class TrainingDisplay:
    """Loss parts, rate and time left while training, and a line with ES/GS/LS for every validation."""

    def __init__(self, bar: BarDisplay, *, quiet: bool) -> None:
        self._bar, self._quiet = bar, quiet
        self._last_line = 0.0

    def told(self, words: str) -> None:
        if not self._quiet:
            say(f"note: {words}")

    def capturing(self, done: int, total: int) -> None:
        self._bar("reading the model's rows", done, total)

    def step(self, report: StepReport) -> None:
        losses = report.losses
        text = (
            f"step {report.step:,}  {report.facts} facts  loss {losses.total:.3f} (rephrases {losses.equivalent:.3f}, "
            f"edits {losses.edit:.3f}, unrelated {max(0.0, losses.locality):.3f})  {report.rate:.0f} facts/s  "
            f"{_minutes(report.eta_seconds)} left"
        )
        self._bar.bar("training", round(1000 * report.done), 1000)
        now = time.monotonic()
        if not self._quiet and now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            say(text)

    def validated(self, step: int, validation: Validation, best: bool) -> None:
        if self._quiet:
            return
        parts = [
            f"{size}: " + "/".join("-" if x is None else f"{x:.2f}" for x in scores.as_dict().values())
            for size, scores in validation.scores.items()
        ]
        say(f"step {step:,}  held-out ES/GS/LS at {'  '.join(parts)}{'  best' if best else ''}")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
