"""Every measure of an examination, before and after, each with its bootstrap interval over facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from malmen_cli.evaluation.bootstrap import Column, Score, scores_of
from malmen_cli.evaluation.results import KINDS, Kind, Result, Said
from malmen_cli.evaluation.six_scores import Pair, SixScores, six_scores

EDITED: tuple[Kind, ...] = ("edit", "rephrase")
"""The kinds whose target is a new one: of an unrelated prompt there is no old answer to compare with."""


@dataclass(frozen=True, slots=True)
class Change:
    """One measure of the base and of the edited model; None where nothing was asked."""

    before: Score | None
    after: Score | None

    def as_dict(self) -> dict[str, dict[str, float] | None]:
        return {"before": _dict(self.before), "after": _dict(self.after)}


@dataclass(frozen=True, slots=True)
class Measures:
    """Means over prompts, by kind of prompt.

    Attributes:
        teacher_forced: ES, GS and LS. exact_match, contains: of free answers. unchanged: of unrelated prompts, from the
            base. new_probability, old_probability: of the target, and of what the base answers by itself, the
            geometric mean over its tokens, 0 to 1. new_over_old: share of prompts at which the new target is the
            likelier of the two, of those at which they differ.
    """

    teacher_forced: Mapping[Kind, Change]
    exact_match: Mapping[Kind, Change]
    contains: Mapping[Kind, Change]
    unchanged: Pair
    new_probability: Mapping[Kind, Change]
    old_probability: Mapping[Kind, Change]
    new_over_old: Mapping[Kind, Change]

    def as_dict(self) -> dict[str, Any]:
        by_kind = ("teacher_forced", "exact_match", "contains", "new_probability", "old_probability", "new_over_old")
        found: dict[str, Any] = {
            name: {kind: change.as_dict() for kind, change in getattr(self, name).items()} for name in by_kind
        }
        return found | {"unchanged": self.unchanged.as_dict()}


def measures_of(results: Sequence[Result], facts: int) -> Measures:
    """The measures of results of so many facts; all intervals come of the same draws."""
    of_kind = _by_kind(results)
    columns: list[Column] = []

    def add(kind: Kind, of: Callable[[Result, Said], float | None]) -> None:
        for state in ("before", "after"):
            values = [(result.fact, of(result, getattr(result, state))) for result in of_kind[kind]]
            columns.append([(fact, float(value)) for fact, value in values if value is not None])

    for kind in KINDS:
        add(kind, lambda _, said: said.accuracy)
        add(kind, lambda _, said: said.exact_match)
        add(kind, lambda _, said: said.contains)
    for kind in EDITED:
        add(kind, lambda _, said: said.new_probability)
        add(kind, lambda _, said: said.old_probability)
        add(kind, lambda _, said: said.new_over_old)
    columns += [unchanged(of_kind["unrelated"]), unchanged_generated(of_kind["unrelated"])]
    scores = iter(scores_of(columns, max(facts, 1)))
    found: dict[str, dict[Kind, Change]] = {}
    for kinds, names in (
        (KINDS, ("teacher_forced", "exact_match", "contains")),
        (EDITED, ("new_probability", "old_probability", "new_over_old")),
    ):
        for kind in kinds:
            for name in names:
                found.setdefault(name, {})[kind] = Change(next(scores), next(scores))
    return Measures(**found, unchanged=Pair(next(scores), next(scores)))


def six_scores_of(results: Sequence[Result], facts: int) -> SixScores:
    """The six scores of the edited model; `facts` is how many there are, the results' indices being below it."""
    of_kind = _by_kind(results)
    forced: list[Column] = [[(x.fact, x.after.accuracy) for x in of_kind[kind]] for kind in EDITED]
    generated: list[Column] = [
        [(x.fact, float(x.after.exact_match)) for x in of_kind[kind] if x.after.exact_match is not None]
        for kind in EDITED
    ]
    other = of_kind["unrelated"]
    return six_scores([*forced, unchanged(other)], [*generated, unchanged_generated(other)], max(facts, 1))


def _by_kind(results: Sequence[Result]) -> dict[Kind, list[Result]]:
    """The results of each kind. An unrelated prompt that several facts ask (a lent one, say) has one answer, which
    comes up as often as the first of them is drawn."""
    of_kind: dict[Kind, list[Result]] = {kind: [x for x in results if x.kind == kind] for kind in KINDS}
    first: dict[str, int] = {}
    of_kind["unrelated"] = [replace(x, fact=first.setdefault(x.prompt, x.fact)) for x in of_kind["unrelated"]]
    return of_kind


def unchanged(results: Sequence[Result]) -> Column:
    return [(x.fact, x.unchanged) for x in results]


def unchanged_generated(results: Sequence[Result]) -> Column:
    return [(x.fact, float(x.unchanged_generated)) for x in results if x.unchanged_generated is not None]


def _dict(score: Score | None) -> dict[str, float] | None:
    return None if score is None else score.as_dict()
