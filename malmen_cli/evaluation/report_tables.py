"""The tables of a comparison's report, as text cells: HTML, Markdown and the terminal show the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from malmen_cli.evaluation.comparison import WAYS, Comparison, Interval, Point, mean_over, over_seeds
from malmen_cli.evaluation.six_scores import SUBJECTS

SHORT = {"teacher_forced": "forced", "generated": "generated"}


@dataclass(frozen=True, slots=True)
class Cell:
    """Text, its interval where it is a score with one, and whether it is the best of those it stands against."""

    text: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its caption; the first `names` columns say what a row is of, the others are numbers.

    Of a `grouped` one rows with the same second cell belong together.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    names: int = 2
    grouped: bool = False


def score_table(comparison: Comparison) -> Table:
    """The six scores and the harmonic mean of every method at every number of facts; the best at each is marked.

    A method without a point has a row all the same, so that what is missing is seen.
    """
    ways = [way for way in WAYS if way == "teacher_forced" or comparison.generated]
    picks: list[Callable[[Point], Interval | None]] = [
        lambda point, subject=subject, way=way: point.scores.of(subject).by(way)  # type: ignore[misc]
        for subject in SUBJECTS
        for way in ways
    ]
    picks.append(lambda point: point.scores.harmonic_mean)
    header = [f"{subject.capitalize()}, {SHORT[way]}" for subject in SUBJECTS for way in ways]
    rows: list[list[Cell]] = []
    for size in comparison.question.sizes:
        if len(comparison.without(size)) == len(comparison.labels):
            continue
        found = [
            (label, [over_seeds([pick(point) for point in comparison.of(label, size)]) for pick in picks])
            for label in comparison.labels
        ]
        fair = comparison.is_fair(size)
        best = [_best([scores[place] for _, scores in found]) if fair else None for place in range(len(picks))]
        rows += [
            [
                Cell(label),
                Cell(f"{size:,}"),
                *(
                    replace(score_cell(score), best=score is not None and score.value == top)
                    for score, top in zip(scores, best, strict=True)
                ),
            ]
            for label, scores in found
        ]
    caption = f"The scores of all points, 0 to 1; in small {intervals(comparison)}."
    return Table(caption, ("Method", "Facts", *header, "Harmonic mean"), tuple(map(tuple, rows)), grouped=True)


def intervals(comparison: Comparison) -> str:
    """What the intervals beside scores are, in words."""
    seeds = len(comparison.question.seeds)
    if seeds == 1:
        return "the 95 % bootstrap interval over facts, all prompts of a fact together"
    words = f"the smallest and the largest of {seeds} draws of facts, whose mean the score is"
    if any(len(points) < seeds for _, _, points in _points(comparison)):
        words += "; where there are fewer, of those there are, and of one alone its 95 % bootstrap interval over facts"
    return words


def harmonic_table(comparison: Comparison) -> Table:
    """The harmonic mean alone: a row per method, a column per number of facts."""
    sizes = comparison.question.sizes
    rows = []
    by_label = {
        label: [over_seeds([p.scores.harmonic_mean for p in comparison.of(label, size)]) for size in sizes]
        for label in comparison.labels
    }
    best = [
        _best([scores[place] for scores in by_label.values()]) if comparison.is_fair(size) else None
        for place, size in enumerate(sizes)
    ]
    for label, scores in by_label.items():
        cells = [
            replace(score_cell(score), best=score is not None and score.value == top)
            for score, top in zip(scores, best, strict=True)
        ]
        rows.append((Cell(label), *cells))
    caption = f"The harmonic mean by number of facts; in small {intervals(comparison)}."
    return Table(caption, ("Method", *(f"{n:,} facts" for n in sizes)), tuple(rows), 1)


def paper_table(comparison: Comparison) -> Table:
    """ES, GS and LS of the base and of the edited model, teacher-forced; and exact match of free answers."""
    free = comparison.generated
    rows = []
    for label, size, points in _points(comparison):
        forced = [
            Cell(f"{_mean(points, 'before', name)} → {_mean(points, 'after', name)}") for name in ("ES", "GS", "LS")
        ]
        kinds = ("edit", "rephrase", "unrelated") if free else ()
        matches = [Cell(_number(mean_over(p.after.generated.get(kind) for p in points))) for kind in kinds]
        rows.append((Cell(label), Cell(f"{size:,}"), *forced, *matches))
    header = ("ES", "GS", "LS", *(("ES, generated", "GS, generated", "LS, generated") if free else ()))
    words = "Against the gold answers, base → edited, teacher-forced"
    words += "; exact match of the edited model's free answers." if free else "."
    return Table(words, ("Method", "Facts", *header), tuple(rows), grouped=True)


MEASURES = {
    "contains": "Answer contains the target",
    "rephrases_contain": "To rephrases too",
    "new_over_old": "New likelier than old",
    "new_probability": "P(new)",
    "old_probability": "P(old)",
    "drift": "Perplexity over base",
}
"""What a point may have measured besides, and the columns it goes into."""


def measure_table(comparison: Comparison) -> Table | None:
    """What was measured besides the scores; None where nothing was."""
    names = [name for name in MEASURES if any(point.measures.get(name) is not None for point in comparison.points)]
    rows = [
        (
            Cell(label),
            Cell(f"{size:,}"),
            *(Cell(_number(mean_over(point.measures.get(name) for point in points))) for name in names),
        )
        for label, size, points in _points(comparison)
    ]
    words = "Of the edited model. New: the target; old: what the base answers; per token, where the two differ."
    header = ("Method", "Facts", *(MEASURES[name] for name in names))
    return Table(words, header, tuple(rows), grouped=True) if names else None


def cost_table(comparison: Comparison) -> Table:
    """What each edit took, and the questions after it."""
    rows = []
    for label, size, points in _points(comparison):
        seconds = mean_over(point.seconds for point in points) or 0.0
        edited = mean_over(float(point.edited) for point in points) or 0.0
        peaks = [point.peak_bytes for point in points if point.peak_bytes is not None]
        rows.append(
            (
                Cell(label),
                Cell(f"{size:,}"),
                Cell(f"{edited:,.0f}"),
                Cell(f"{sum(points[0].asked.values()):,}"),
                Cell(f"{seconds:,.2f}"),
                Cell(f"{edited / seconds:,.1f}" if seconds else "-"),
                Cell(f"{mean_over(p.asking_seconds for p in points) or 0.0:,.1f}"),
                Cell(f"{max(peaks) / 1e6:,.0f}" if peaks else "-"),
            )
        )
    header = ("Edited", "Prompts asked", "Edit, s", "Facts per s", "Questions, s", "Peak memory, MB")
    words = "From the loaded model to its new weights, training left out; peak memory of the process, on a GPU of that."
    return Table(words, ("Method", "Facts", *header), tuple(rows), grouped=True)


def group_table(comparison: Comparison) -> Table | None:
    """The worst groups, each method at its largest number of facts; None where there are no groups."""
    rows = [
        (
            Cell(point.contender),
            Cell(f"{point.n_edits:,}"),
            Cell(group.by),
            Cell(group.name),
            Cell(f"{group.facts:,}"),
            *(Cell(_number(getattr(group, subject))) for subject in SUBJECTS),
            Cell(_number(group.harmonic_mean)),
        )
        for point in comparison.largest
        for group in point.groups
    ]
    words = "The worst groups of facts that share a tag, the wording of their prompts, or a target."
    subjects = [subject.capitalize() for subject in SUBJECTS]
    header = ("Method", "Facts", "By", "Group", "In it", *subjects, "Harmonic mean")
    return Table(words, header, tuple(rows), 4) if rows else None


def worst_table(comparison: Comparison) -> Table | None:
    """The facts that came out worst, each method at its largest number of facts; None where all came out well."""
    rows = [
        (
            Cell(point.contender),
            Cell(poor.prompt),
            Cell(poor.target),
            Cell(poor.base),
            Cell(poor.said),
            *(Cell(_number(getattr(poor, subject))) for subject in SUBJECTS),
        )
        for point in comparison.largest
        for poor in point.worst
    ]
    header = ("Method", "Prompt", "Target", "Base", "Edited", *(subject.capitalize() for subject in SUBJECTS))
    words = "What the base and the edited model answer to the facts with the lowest scores."
    return Table(words, header, tuple(rows), 5) if rows else None


def score_cell(score: Interval | None) -> Cell:
    if score is None:
        return Cell("-")
    has_width = score.low < score.high
    return Cell(f"{score.value:.3f}", f"{score.low:.2f} to {score.high:.2f}" if has_width else "")


def _points(comparison: Comparison) -> list[tuple[str, int, list[Point]]]:
    return [
        (label, size, points)
        for size in comparison.question.sizes
        for label in comparison.labels
        if (points := comparison.of(label, size))
    ]


def _best(scores: Sequence[Interval | None]) -> float | None:
    """The best of several; None where there is nothing to compare."""
    values = [score.value for score in scores if score is not None]
    return max(values) if len(values) > 1 and len(set(values)) > 1 else None


def _mean(points: Sequence[Point], state: str, name: str) -> str:
    return _number(mean_over(getattr(getattr(point, state), name) for point in points))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
