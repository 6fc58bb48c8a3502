"""What an examination found: every prompt in both states of the model, and the scores they come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from malmen_cli.evaluation.groups import GROUPINGS, Group, GroupBy, grouped
from malmen_cli.evaluation.measures import Measures, measures_of, six_scores_of
from malmen_cli.evaluation.metrics import Scores, mean
from malmen_cli.evaluation.results import KINDS, Kind, Result, Said
from malmen_cli.evaluation.six_scores import SixScores
from malmen_cli.facts import Fact

__all__ = ["KINDS", "Kind", "Report", "Result", "Said", "StateScores"]


@dataclass(frozen=True)
class StateScores:
    """Means over prompts in one state, 0 to 1; None where there was nothing to ask, or nothing was generated.

    Attributes:
        forced: ES, GS and LS, teacher-forced. generated: exact match by kind. cut_off: answers by kind that ran into
            the cap instead of stopping by themselves.
    """

    forced: Scores
    generated: Mapping[Kind, float | None]
    cut_off: Mapping[Kind, int | None]

    def teacher_forced(self, kind: Kind) -> float | None:
        scores = self.forced
        return {"edit": scores.edit_success, "rephrase": scores.generalization, "unrelated": scores.locality}[kind]

    def as_dict(self) -> dict[str, Any]:
        return {**self.forced.as_dict(), "generated": dict(self.generated), "cut_off": dict(self.cut_off)}


@dataclass(frozen=True)
class Report:
    """The facts, the results of their prompts in the facts' order, and how many prompts could not be asked, by kind."""

    facts: Sequence[Fact]
    results: Sequence[Result]
    left_out: Mapping[Kind, int]

    def of_kind(self, kind: Kind) -> list[Result]:
        return [result for result in self.results if result.kind == kind]

    @property
    def asked(self) -> dict[Kind, int]:
        """Prompts asked, by kind."""
        return {kind: len(self.of_kind(kind)) for kind in KINDS}

    @property
    def before(self) -> StateScores:
        return self._scores(lambda result: result.before)

    @property
    def after(self) -> StateScores:
        return self._scores(lambda result: result.after)

    @property
    def unchanged(self) -> float | None:
        """Locality as the share of what the base says to unrelated prompts, teacher-forced."""
        return mean([result.unchanged for result in self.of_kind("unrelated")])

    @property
    def unchanged_generated(self) -> float | None:
        """The share of unrelated prompts that get the very same generated answer as from the base."""
        return _share([result.unchanged_generated for result in self.of_kind("unrelated")])

    @cached_property
    def six_scores(self) -> SixScores:
        """Of the edited model, with intervals over facts."""
        return six_scores_of(self.results, len(self.facts))

    @cached_property
    def measures(self) -> Measures:
        """Every measure with its interval, before and after."""
        return measures_of(self.results, len(self.facts))

    def groups(self, by: GroupBy) -> list[Group]:
        """The six scores of groups of facts, the worst first."""
        return grouped(self.facts, self.results, by)

    def part(self, places: Sequence[int]) -> Report:
        """Of some of the facts; what could not be asked is not told of them."""
        there = {place: new for new, place in enumerate(places)}
        results = [replace(x, fact=there[x.fact]) for x in self.results if x.fact in there]
        return Report([self.facts[place] for place in places], results, dict.fromkeys(KINDS, 0))

    def failed(self) -> list[Fact]:
        """The facts that the edited model does not say to their edit prompts, teacher-forced or by itself."""
        return [self.facts[x.fact] for x in self.of_kind("edit") if x.failed]

    def wrong(self) -> list[str]:
        """The digests of those."""
        return [fact.digest for fact in self.failed()]

    def _scores(self, state: Callable[[Result], Said]) -> StateScores:
        said = {kind: [state(result) for result in self.of_kind(kind)] for kind in KINDS}
        forced = Scores(*(mean([x.accuracy for x in said[kind]]) for kind in KINDS))
        return StateScores(
            forced,
            {kind: _share([x.exact_match for x in said[kind]]) for kind in KINDS},
            {kind: _count([x.stopped for x in said[kind]]) for kind in KINDS},
        )

    def as_dict(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Everything, for `--json`. `numbers`: of each fact, its place in the file or entry, counted from 1."""
        return {
            "asked": self.asked,
            "left_out": dict(self.left_out),
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "unchanged": {"teacher_forced": self.unchanged, "generated": self.unchanged_generated},
            "six_scores": self.six_scores.as_dict(),
            "measures": self.measures.as_dict(),
            "groups": {by: [group.as_dict() for group in self.groups(by)] for by in GROUPINGS},
            "facts": self.fact_dicts(numbers),
        }

    def fact_dicts(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Of each fact its results, as JSON shows and the ledger keeps them."""
        by_fact: list[dict[Kind, list[dict[str, Any]]]] = [{kind: [] for kind in KINDS} for _ in self.facts]
        for result in self.results:
            by_fact[result.fact][result.kind].append(result.as_dict())
        return [
            {
                "number": number,
                "digest": fact.digest,
                "prompt": fact.prompt,
                "target": fact.target,
                "edit": next(iter(results["edit"]), None),
                "rephrases": results["rephrase"],
                "unrelated": results["unrelated"],
            }
            for number, fact, results in zip(numbers, self.facts, by_fact, strict=True)
        ]


def _share(values: Sequence[bool | None]) -> float | None:
    return mean([float(value) for value in values if value is not None])


def _count(stopped: Sequence[bool | None]) -> int | None:
    """How many did not stop by themselves; None where nothing was generated."""
    known = [value for value in stopped if value is not None]
    return known.count(False) if known else None
