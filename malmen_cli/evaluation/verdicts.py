"""Verdicts: the figures that gates were asked for, whether they hold, and where the model does worst. No torch."""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from malmen_cli.evaluation.gates import SLACK, Gate, Group

if TYPE_CHECKING:
    from malmen_cli.evaluation.results import Kind

WORST = 5
"""Prompts that each figure names."""

_PROMPTS: dict[Kind, str] = {"edit": "edit prompts", "rephrase": "rephrases", "unrelated": "unrelated prompts"}
_FACTS: dict[Group, str] = {"new": "new facts", "old": "earlier facts"}


@dataclass(frozen=True, slots=True)
class Shortfall:
    """One prompt that does not do what a gate asks of it.

    Attributes:
        kind: None of a protected prompt. wanted: the target, or the base's own answer. said: by the edited model.
        value: share of it that is right, 0 to 1. fact: prompt of the fact that it belongs to; of a protected prompt,
            of the active fact that it is itself, if it is one.
    """

    kind: Kind | None
    prompt: str
    wanted: str
    said: str
    value: float
    fact: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Figure:
    """A mean over prompts, added up one by one.

    Attributes:
        asked: prompts that were. left_out: those that could not be (longer than the model's positions, say): they count
            as 0, so that the mean of all is no lower, whatever the model would say to them.
        worst: of those with less than 1, the lowest.
    """

    total: float = 0.0
    asked: int = 0
    left_out: int = 0
    worst: list[Shortfall] = field(default_factory=list)

    def add(self, found: Shortfall) -> None:
        self.total += found.value
        self.asked += 1
        if found.value < 1 and (len(self.worst) < WORST or found.value < self.worst[-1].value):
            insort(self.worst, found, key=lambda x: x.value)  # after its equals, so that the first ones stay
            del self.worst[WORST:]

    @property
    def mean(self) -> float | None:
        """None where no prompt was asked."""
        return self.total / self.count if self.asked else None

    @property
    def count(self) -> int:
        """All prompts that there are, whether they could be asked or not."""
        return self.asked + self.left_out


@dataclass(frozen=True)
class Verdict:
    """What came of one gate: a figure for each group of prompts that it was asked of. What cannot be asked fails."""

    gate: Gate
    figures: Mapping[Group, Figure]

    @classmethod
    def of(cls, gate: Gate, figures: Mapping[Group, Figure], *, old_facts: bool) -> Verdict:
        """The verdict from the figures of all of a gate's groups.

        Old facts that have no such prompts stop no gate that new facts must pass as well; nor, where there is no old
        fact at all, does that stop a gate on them. Prompts that do not fit the model are there, and stop it.
        """
        excused = not old_facts or gate.groups != ("old",)
        return cls(gate, {x: y for x, y in figures.items() if x != "old" or y.count or not excused})

    def holds(self, group: Group) -> bool:
        figure = self.figures[group]
        return figure.mean is not None and self.gate.holds(figure.mean)

    @property
    def failed(self) -> list[Group]:
        return [group for group in self.figures if not self.holds(group)]

    def words(self, group: Group) -> str:
        """By how much the gate fails of a group."""
        gate, figure = self.gate, self.figures[group]
        of = f"{_PROMPTS[gate.measure.kind]} of {_FACTS[group]}" if gate.measure is not None else "protected prompts"
        if figure.mean is None:
            none = f"none of {figure.count:,} {of} fits the model" if figure.count else f"there are no {of}"
            return f"{gate} cannot be asked: {none}"
        short = gate.limit - figure.mean
        missing = f"{short:.2g} short" if short > SLACK else "not above"
        long = f"; {figure.left_out:,} of them do not fit the model and count as 0" if figure.left_out else ""
        return f"{gate} is {figure.mean:.4f} of {figure.count:,} {of}, {missing}{long}"

    def as_dict(self, *, worst: bool) -> dict[str, Any]:
        figures = {
            group: {
                "value": figure.mean,
                "asked": figure.asked,
                "left_out": figure.left_out,
                "holds": self.holds(group),
                **({"worst": [found.as_dict() for found in figure.worst]} if worst else {}),
            }
            for group, figure in self.figures.items()
        }
        return {"gate": str(self.gate), "limit": self.gate.limit, "holds": not self.failed, "figures": figures}


@dataclass(frozen=True)
class Verdicts:
    """What came of all gates. Attributes: protected: source, digest and count of the prompts that must not change."""

    verdicts: Sequence[Verdict]
    protected: Mapping[str, Any] | None

    @property
    def failed(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.failed]

    def as_dict(self, *, worst: bool = True) -> dict[str, Any]:
        """For `--json`; without `worst`, for the ledger."""
        return {
            "hold": not self.failed,
            **({} if self.protected is None else {"protected": self.protected}),
            "gates": [verdict.as_dict(worst=worst) for verdict in self.verdicts],
        }
