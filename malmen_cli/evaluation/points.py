"""From an examination's report to a point of a comparison: its scores, its groups and its worst facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from malmen_cli.evaluation.bootstrap import Score
from malmen_cli.evaluation.comparison import Both, Group, Interval, Point, Poor, Six, State, mean_over
from malmen_cli.evaluation.groups import GROUPINGS
from malmen_cli.evaluation.measures import Change
from malmen_cli.evaluation.report import Kind, Report, Result, StateScores
from malmen_cli.evaluation.six_scores import Pair, SixScores

GROUPS, WORST = 5, 10
"""Groups of a kind, and facts, that are named: the worst ones."""


def point_of(
    report: Report,
    *,
    contender: str,
    n_edits: int,
    seed: int,
    seconds: float,
    asking_seconds: float,
    peak_bytes: int | None,
    left_out: Mapping[Kind, int],
    warnings: Sequence[str],
    measures: Mapping[str, float] | None = None,
) -> Point:
    """The point that a report comes to; `measures` are added to the report's own."""
    return Point(
        contender=contender,
        n_edits=n_edits,
        seed=seed,
        edited=len(report.facts),
        scores=_six(report.six_scores),
        before=_state(report.before),
        after=_state(report.after),
        asked={str(kind): count for kind, count in report.asked.items()},
        left_out={str(kind): count for kind, count in left_out.items() if count},
        seconds=seconds,
        asking_seconds=asking_seconds,
        peak_bytes=peak_bytes,
        measures={**_measures(report), **(measures or {})},
        groups=_groups(report),
        worst=worst_of(report),
        warnings=list(warnings),
    )


def worst_of(report: Report) -> list[Poor]:
    """The facts with the lowest mean of their reliability, generalisation and locality; those with all of them whole
    are never among them."""
    by_fact: dict[int, list[Result]] = {}
    for result in report.results:
        by_fact.setdefault(result.fact, []).append(result)
    ranked = []
    for fact, results in by_fact.items():
        edits = [result for result in results if result.kind == "edit"]
        if edits:
            shares = [_share(results, "edit"), _share(results, "rephrase"), _share(results, "unrelated")]
            ranked.append((mean_over(shares) or 0.0, fact, edits[0], shares))
    ranked.sort(key=lambda found: found[:2])
    return [
        Poor(
            prompt=edit.prompt,
            target=edit.target,
            base=_said(edit, "before"),
            said=_said(edit, "after"),
            reliability=shares[0],
            generalisation=shares[1],
            locality=shares[2],
        )
        for mean, _, edit, shares in ranked[:WORST]
        if mean < 1
    ]


def _share(results: Sequence[Result], kind: Kind) -> float | None:
    """By both ways of asking, where both were asked."""
    values: list[float | None] = []
    for result in results:
        if result.kind == kind:
            forced, free = (
                (result.unchanged, result.unchanged_generated)
                if kind == "unrelated"
                else (result.after.accuracy, result.after.exact_match)
            )
            values += [forced, None if free is None else float(free)]
    return mean_over(values)


def _said(result: Result, state: str) -> str:
    said = result.before if state == "before" else result.after
    return said.answer if said.generated is None else said.generated


def _groups(report: Report) -> list[Group]:
    return [
        Group(
            by=by,
            name=group.name,
            facts=group.facts,
            reliability=_both(group.scores.reliability),
            generalisation=_both(group.scores.generalisation),
            locality=_both(group.scores.locality),
            harmonic_mean=_value(group.scores.harmonic_mean),
        )
        for by in GROUPINGS
        # One group that holds all facts says nothing that the scores do not say.
        for group in report.groups(by)[:GROUPS]
        if group.facts < len(report.facts)
    ]


def _measures(report: Report) -> dict[str, float]:
    """What the tables have no column of their own for: of edit prompts unless the name says otherwise."""
    found = report.measures
    named: dict[str, Change] = {
        "contains": found.contains["edit"],
        "rephrases_contain": found.contains["rephrase"],
        "new_probability": found.new_probability["edit"],
        "old_probability": found.old_probability["edit"],
        "new_over_old": found.new_over_old["edit"],
    }
    return {name: change.after.value for name, change in named.items() if change.after is not None}


def _six(scores: SixScores) -> Six:
    return Six(
        reliability=_pair(scores.reliability),
        generalisation=_pair(scores.generalisation),
        locality=_pair(scores.locality),
        harmonic_mean=_interval(scores.harmonic_mean),
    )


def _pair(pair: Pair) -> Both:
    return Both(teacher_forced=_interval(pair.forced), generated=_interval(pair.generated))


def _interval(score: Score | None) -> Interval | None:
    return None if score is None else Interval(value=score.value, low=score.low, high=score.high)


def _both(pair: Pair) -> float | None:
    return mean_over([_value(pair.forced), _value(pair.generated)])


def _value(score: Score | None) -> float | None:
    return None if score is None else score.value


def _state(scores: StateScores) -> State:
    return State.model_validate(
        {**scores.forced.as_dict(), "generated": {str(kind): value for kind, value in scores.generated.items()}}
    )
