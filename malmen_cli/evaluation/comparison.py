"""A comparison: scores of several methods or editors against the number of facts, as the values of its report.

`report.json` is a `Comparison`. Its schema only ever grows: what a reader does not know it leaves aside.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from malmen_cli.evaluation.six_scores import SUBJECTS, Subject

SCHEMA = "malmen-comparison-1"
"""What `report.json` says that it is."""

Way = Literal["teacher_forced", "generated"]
WAYS: tuple[Way, ...] = ("teacher_forced", "generated")
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Value(BaseModel):
    """A value of a report: frozen, and read from JSON of this or a later version."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Interval(Value):
    """A score, 0 to 1, and where it may lie: the ends of its 95 % bootstrap interval over facts."""

    value: Finite
    low: Finite
    high: Finite


class Both(Value):
    """A score by both ways of asking; None where nothing was asked so."""

    teacher_forced: Interval | None = None
    generated: Interval | None = None

    def by(self, way: Way) -> Interval | None:
        return self.teacher_forced if way == "teacher_forced" else self.generated


class Six(Value):
    """The six scores of an edited model and their harmonic mean (`six_scores.SixScores`)."""

    reliability: Both
    generalisation: Both
    locality: Both
    harmonic_mean: Interval | None = None

    def of(self, subject: Subject) -> Both:
        found: Both = getattr(self, subject)
        return found


class State(Value):
    """Means of one state of the model, 0 to 1: the paper's three scores, and exact match of free answers by kind."""

    ES: Finite | None = None
    GS: Finite | None = None
    LS: Finite | None = None
    generated: dict[str, Finite | None] = {}


class Group(Value):
    """Facts with something in common (`groups.GroupBy`): how many, and their scores, both ways of asking together."""

    by: str
    name: str
    facts: int
    reliability: Finite | None = None
    generalisation: Finite | None = None
    locality: Finite | None = None
    harmonic_mean: Finite | None = None


class Poor(Value):
    """A fact that came out badly: what the base and the edited model say, and its scores by both ways of asking."""

    prompt: str
    target: str
    base: str
    said: str
    reliability: Finite | None = None
    generalisation: Finite | None = None
    locality: Finite | None = None


class Point(Value):
    """One method or editor at one number of facts.

    Attributes:
        contender: whose point it is, as `Contender.label`. n_edits: facts asked for. edited: those that fit the model.
        asked, left_out: prompts by kind. seconds: of the edit, from the loaded model to its new weights; of a method
            without training everything it does. asking_seconds: of all questions to the edited model.
        peak_bytes: the process's largest resident memory during the edit; None where the system does not tell.
        measures: whatever else was measured, by name. worst: of the facts, those that came out worst, worst first.
    """

    contender: str
    n_edits: int
    seed: int
    edited: int
    scores: Six
    before: State
    after: State
    asked: dict[str, int]
    left_out: dict[str, int] = {}
    seconds: Finite
    asking_seconds: Finite
    peak_bytes: int | None = None
    measures: dict[str, Finite | None] = {}
    groups: list[Group] = []
    worst: list[Poor] = []
    warnings: list[str] = []

    @property
    def key(self) -> tuple[str, int, int]:
        return self.contender, self.n_edits, self.seed


class Contender(Value):
    """What is compared: a method, and the editor that carries it where there is one in the ledger.

    Attributes:
        label: its name in legends and tables, no other's. settings: what must be the same for its points to be. about:
            words for people.
    """

    label: str
    method: str
    editor: str | None = None
    settings: dict[str, Any] = {}
    about: str = ""


class Question(Value):
    """What is asked of what: two runs with the same question give the same points.

    Attributes:
        base: digest of the base. facts: digest of the fact set. sizes, seeds: ascending numbers of facts, and what
            draws them. options: everything else that changes an answer. free: facts that are drawn from; None in
            reports of before it was told. ends_by_default: where a contender does not say, answers' ends are asked for.
    """

    model: str
    base: str
    source: str
    facts: str
    available: int
    sizes: list[int]
    seeds: list[int]
    contenders: list[Contender]
    options: dict[str, Any] = {}
    free: int | None = None
    ends_by_default: bool = False

    def seeds_of(self, size: int) -> list[int]:
        """Seeds that draw so many facts: of all of them there is one draw, whatever the seed."""
        return self.seeds[:1] if size == self.free else self.seeds

    @property
    def asks_the_same(self) -> bool:
        """Whether all contenders' targets are supervised alike: where their end counts, it is a token to get right."""
        return len({(self.asks_for_ends(x), bool(x.settings.get("chat_template"))) for x in self.contenders}) <= 1

    def asks_for_ends(self, contender: Contender) -> bool:
        """Whether the end of an answer is one of the tokens that are asked for."""
        chosen = contender.settings.get("end_of_text")
        return self.ends_by_default if chosen is None else bool(chosen)

    def differences(self, other: Question) -> list[str]:
        """Names of the fields in which another question is another one; what is said of contenders is none."""
        ours, theirs = (x.model_dump(exclude={"contenders": {"__all__": {"about"}}}) for x in (self, other))
        return [name for name, value in ours.items() if value != theirs[name]]


class Comparison(Value):
    """A question and the points made so far.

    Attributes:
        about: words and versions that change no answer: the command, when, where, on what. notes: what a reader must
            know, such as overlap with training. failed: keys of points that could not be made; notes say why.
    """

    schema_name: str = Field(default=SCHEMA, alias="schema")
    question: Question
    about: dict[str, Any] = {}
    notes: list[str] = []
    points: list[Point] = []
    failed: list[tuple[str, int, int]] = []

    @property
    def wanted(self) -> list[tuple[str, int, int]]:
        """Keys of all points, in the order in which they are made: small numbers of all contenders come first."""
        question = self.question
        return [
            (contender.label, size, seed)
            for seed in question.seeds
            for size in question.sizes
            for contender in question.contenders
            if seed in question.seeds_of(size)
        ]

    @property
    def missing(self) -> list[tuple[str, int, int]]:
        made = {point.key for point in self.points}
        return [key for key in self.wanted if key not in made]

    @property
    def untried(self) -> list[tuple[str, int, int]]:
        """The missing ones that nothing is known to be in the way of."""
        return [key for key in self.missing if key not in self.failed]

    @property
    def labels(self) -> list[str]:
        return [contender.label for contender in self.question.contenders]

    def of(self, label: str, size: int) -> list[Point]:
        """The points of a contender at a number of facts, one per seed that is done."""
        return [point for point in self.points if (point.contender, point.n_edits) == (label, size)]

    def without(self, size: int) -> list[str]:
        """Labels of the contenders that have no point at a number of facts: not yet, or because the edit broke down."""
        return [label for label in self.labels if not self.of(label, size)]

    def is_fair(self, size: int) -> bool:
        """Whether all points at a number of facts are of the same draws, and all asked the same: else that decides."""
        if not self.question.asks_the_same:
            return False
        draws = {frozenset(point.seed for point in self.of(label, size)) for label in self.labels}
        return len(draws - {frozenset()}) <= 1

    @property
    def largest(self) -> list[Point]:
        """Of each contender the point of its largest number of facts, with the first seed."""
        found: dict[str, Point] = {}
        for point in self.points:
            best = found.get(point.contender)
            if best is None or point.n_edits > best.n_edits:
                found[point.contender] = point
        return [found[label] for label in self.labels if label in found]

    @property
    def generated(self) -> bool:
        """Whether the model answered freely too, in any point."""
        return any(point.scores.of(subject).generated for point in self.points for subject in SUBJECTS)

    @classmethod
    def from_json(cls, text: str | bytes) -> Comparison:
        """What `to_json` wrote, or a later version's.

        Raises:
            ValueError: it is no such thing.
        """
        found = cls.model_validate_json(text)
        if found.schema_name != SCHEMA:
            raise ValueError(f"it is of another schema than {SCHEMA}")
        return found

    def to_json(self) -> str:
        """The report's JSON: ASCII, so that control and direction marks of a fact stay escaped."""
        value = self.model_dump(mode="json", by_alias=True)
        return json.dumps(value, indent=1, allow_nan=False) + "\n"


def over_seeds(scores: Sequence[Interval | None]) -> Interval | None:
    """One score for several seeds: of one seed its own, of several their mean, from the smallest to the largest."""
    there = [score for score in scores if score is not None]
    if len(there) <= 1:
        return there[0] if there else None
    values = [score.value for score in there]
    return Interval(value=sum(values) / len(values), low=min(values), high=max(values))


def mean_over(values: Iterable[float | None]) -> float | None:
    """The mean of those that are there."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
