"""The folder of a comparison's report: what may be written where, and its files."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from malmen_cli.checkpoint.durable import TEMPORARY, in_words, make_folders, require_writable, write_durably
from malmen_cli.errors import MalmenError, UsageError
from malmen_cli.evaluation.comparison import Comparison, Question
from malmen_cli.facts import printable

HTML, MARKDOWN, JSON = "report.html", "report.md", "report.json"
_LARGEST = 256 << 20  # bytes of a report that is read
_ANOTHER = "name another folder with --report, or remove that one"


def default_folder(model: str) -> ReportFolder:
    """A folder in the current one, of the model and the day, and of another question on that day a number; of a
    question that an earlier day has left unfinished, that day's."""
    name = f"malmen-eval-{model}-"
    return ReportFolder(Path(f"{name}{datetime.now(UTC):%Y-%m-%d}"), family=name)


class ReportFolder:
    """A folder that holds one report, or will. Other files in it are left alone.

    Args:
        family: nobody named it: where it holds a report of another question, it is the next of its name instead, and
            where one whose name begins so holds this one unfinished, it is that.

    Attributes:
        latest: what was saved last.

    Raises:
        UsageError: there is something that is no folder, or a folder of something else. MalmenError: it cannot be
            written.
    """

    def __init__(self, path: Path, *, family: str | None = None) -> None:
        self._family = family
        self.latest: Comparison | None = None
        self._take(path)

    def _take(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_dir():
            raise UsageError(f"{_shown(path)} is there and is no folder", remedy="name another folder")
        self._kept = self._read()
        require_writable(path)

    def resumed(self, question: Question) -> Comparison | None:
        """The report that is there, of this very question; None where there is none yet.

        Raises:
            UsageError: it answers another question, and was named.
        """
        first, number = self.path, 1
        unfinished = None if self._family is None else self._unfinished(question)
        self._take(unfinished or first)  # again: another command may have begun a report there meanwhile
        while True:
            if self._kept is None and (self._family is None or self._begun()):
                return None
            other = [] if self._kept is None else self._kept.question.differences(question)
            if self._kept is not None and not other:
                return self._kept
            if self._family is None:
                raise UsageError(
                    f"{_shown(self.path)} holds a report of another question (it differs in {', '.join(other)})",
                    remedy=_ANOTHER,
                )
            number += 1
            self._take(first.with_name(f"{first.name}-{number}"))

    def _begun(self) -> bool:
        """Make the folder; False where another command was faster."""
        with in_words(self.path):
            try:
                self.path.mkdir()
            except FileExistsError:
                return False
        return True

    def _unfinished(self, question: Question) -> Path | None:
        """The folder of the family's newest report of this question that lacks points."""
        assert self._family is not None
        names = [path.name for path in self.path.parent.iterdir() if path.name.startswith(self._family)]
        for name in sorted(names, reverse=True):
            with suppress(MalmenError, OSError):  # another's folder, or one that is no report, is passed over
                kept = ReportFolder(self.path.with_name(name))._kept
                if kept is not None and kept.untried and not kept.question.differences(question):
                    return self.path.with_name(name)
        return None

    def save(self, comparison: Comparison) -> None:
        """Keep the points made so far: `report.json` alone."""
        if not self.path.is_dir():
            make_folders(self.path)
        write_durably(self.path / JSON, comparison.to_json().encode())
        self.latest = comparison

    def draw(self, comparison: Comparison) -> list[Path]:
        """Write the whole report, `report.html` first in what is returned."""
        from malmen_cli.evaluation.plots import figures
        from malmen_cli.evaluation.report_pages import html_page, markdown_page

        self.save(comparison)
        drawn = figures(comparison)
        files = {HTML: html_page(comparison, drawn).encode(), MARKDOWN: markdown_page(comparison, drawn).encode()}
        for figure in drawn:
            files |= {f"{figure.name}.png": figure.png, f"{figure.name}.svg": figure.svg.encode()}
        for name, data in files.items():
            write_durably(self.path / name, data)
        return [self.path / name for name in (HTML, MARKDOWN, JSON, *list(files)[2:])]

    def _read(self) -> Comparison | None:
        path = self.path / JSON
        try:
            # What a killed command left of its first save is nothing yet.
            if not self.path.is_dir() or all(other.name.startswith(TEMPORARY) for other in self.path.iterdir()):
                return None
            if path.stat().st_size > _LARGEST:
                raise ValueError("it is too large")
            return Comparison.from_json(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            raise UsageError(
                f"{_shown(self.path)} is not empty and holds no report of an evaluation", remedy=_ANOTHER
            ) from None


def _shown(path: Path) -> str:
    return printable(str(path), limit=None)
