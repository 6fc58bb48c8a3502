"""A comparison made up for tests of its report: numbers from a formula, texts that a stranger might have written."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2, sqrt

from malmen_cli.evaluation.comparison import (
    Both,
    Comparison,
    Contender,
    Group,
    Interval,
    Point,
    Poor,
    Question,
    Six,
    State,
)

NASTY = "<script>alert(1)</script> <img src=x onerror=alert(1)> | *b* `c` $d$ [e](http://f) \x1b[31m \u202e \x00"
SHOWN = r"<script>alert(1)</script> <img src=x onerror=alert(1)> | *b* `c` $d$ [e](http://f) \x1b[31m \u202e \x00"
"""NASTY as a reader is to see it: letter by letter, with control characters spelled out."""


def interval(value: float, facts: int) -> Interval:
    value = min(1.0, max(0.0, value))
    half = 2 * sqrt(max(value * (1 - value), 0.002) / facts)
    return Interval(value=value, low=max(0.0, value - half), high=min(1.0, value + half))


def made_up(
    labels: Sequence[str] = ("malmen", "ultraedit"),
    sizes: Sequence[int] = (16, 64, 256),
    seeds: Sequence[int] = (0,),
    *,
    text: str = "The capital of Bakeli is",
    generated: bool = True,
) -> Comparison:
    """Scores that fall with the number of facts, and with the method's place; every text of a fact is `text`."""
    points = []
    for seed in seeds:
        for size in sizes:
            for place, label in enumerate(labels):
                lost = 0.06 * log2(size) * (0.5 + 0.3 * place) + 0.01 * seed

                def both(start: float, lost: float = lost, size: int = size) -> Both:
                    forced, free = interval(start - lost, size), interval(start - lost - 0.05, size)
                    return Both(teacher_forced=forced, generated=free if generated else None)

                six = Six(
                    reliability=both(1.0),
                    generalisation=both(0.7),
                    locality=both(0.95),
                    harmonic_mean=interval(0.8 - lost, size),
                )
                kinds = ("edit", "rephrase", "unrelated")
                points.append(
                    Point(
                        contender=label,
                        n_edits=size,
                        seed=seed,
                        edited=size,
                        scores=six,
                        before=State(ES=0.0, GS=0.02, LS=0.99, generated=dict.fromkeys(kinds, 0.0)),
                        after=State(ES=0.9, GS=0.4, LS=0.7, generated=dict.fromkeys(kinds, 0.5)),
                        asked=dict.fromkeys(kinds, size),
                        seconds=size / 10,
                        asking_seconds=size / 5,
                        peak_bytes=500_000_000,
                        measures={"contains": 0.95, "new_probability": 0.8},
                        groups=[Group(by="tag", name=text, facts=8, reliability=0.5, generalisation=0.2, locality=0.4)],
                        worst=[Poor(prompt=text, target=text, base=text, said=text, reliability=0.0, locality=0.5)],
                        warnings=[text] if place else [],
                    )
                )
    question = Question(
        model="tiny",
        base="sha256:" + "ab" * 32,
        source=text,
        facts="sha256:" + "cd" * 32,
        available=1000,
        sizes=list(sizes),
        seeds=list(seeds),
        contenders=[Contender(label=label, method=label, about=text) for label in labels],
        options={"generate": generated, "max_new_tokens": None},
    )
    about = {"command": f"malmen eval {text}", "versions": {"malmen": "1"}, "device": "cpu", "created_at": "2026"}
    return Comparison(question=question, about=about, notes=[text], points=points)


def without(comparison: Comparison, *subjects: str) -> Comparison:
    """The same of a file that has no prompts to ask for these scores."""
    names = {"generalisation": "GS", "locality": "LS"}

    def bare(point: Point) -> Point:
        scores = point.scores.model_copy(update=dict.fromkeys(subjects, Both()))
        after = point.after.model_copy(update={names[subject]: None for subject in subjects})
        return point.model_copy(update={"scores": scores, "after": after})

    return comparison.model_copy(update={"points": [bare(point) for point in comparison.points]})
