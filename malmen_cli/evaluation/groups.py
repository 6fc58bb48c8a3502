"""An examination's scores by groups of facts: by their tags, by the wording of their prompts, by their targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from malmen_cli.evaluation.measures import six_scores_of
from malmen_cli.evaluation.results import Result
from malmen_cli.evaluation.six_scores import SixScores
from malmen_cli.facts import Fact
from malmen_cli.facts.subjects import subject_span

GroupBy = Literal["tag", "template", "target"]
GROUPINGS: tuple[GroupBy, ...] = get_args(GroupBy)
FEWEST = 5
"""Facts that a group has at least: of fewer a score says little."""


@dataclass(frozen=True, slots=True)
class Group:
    """Some facts with something in common. name: a tag, a prompt with {} in its subject's place, or a target."""

    name: str
    facts: int
    scores: SixScores

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "facts": self.facts, "six_scores": self.scores.as_dict()}


def grouped(facts: Sequence[Fact], results: Sequence[Result], by: GroupBy, fewest: int = FEWEST) -> list[Group]:
    """Groups of `fewest` facts or more, the worst first: by the harmonic mean, then by the interval's lower end.

    A fact is in a group for each of its tags. A template is the wording that facts of one relation share in the
    published sets; facts that do not name their subject, or not in the prompt, have none.
    """
    members: dict[str, list[int]] = {}
    for place, fact in enumerate(facts):
        for name in _names(fact, by):
            members.setdefault(name, []).append(place)
    of_fact: dict[int, list[Result]] = {}
    for result in results:
        of_fact.setdefault(result.fact, []).append(result)
    found = [_group(name, places, of_fact) for name, places in members.items() if len(places) >= fewest]
    return sorted(found, key=_rank)


def _names(fact: Fact, by: GroupBy) -> Sequence[str]:
    if by == "tag":
        return fact.tags
    if by == "target":
        return (fact.target,)
    span = subject_span(fact.prompt, fact.subject or "")
    return () if span is None else (f"{fact.prompt[: span[0]]}{{}}{fact.prompt[span[1] :]}",)


def _group(name: str, places: Sequence[int], of_fact: Mapping[int, Sequence[Result]]) -> Group:
    own = [replace(result, fact=i) for i, place in enumerate(places) for result in of_fact.get(place, ())]
    return Group(name, len(places), six_scores_of(own, len(places)))


def _rank(group: Group) -> tuple[float, float, str]:
    mean = group.scores.harmonic_mean
    return (1.0, 1.0, group.name) if mean is None else (mean.value, mean.low, group.name)
