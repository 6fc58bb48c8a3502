"""Gates: what must hold of an edited model before it is written, and the words they are given in. No torch.

A gate is NAME OP NUMBER, such as `ES>=0.95`; several are parted by commas, and all of them must hold:

- `ES`, `GS`, `LS`: teacher-forced, over edit prompts, rephrases and unrelated prompts (against their gold answers);
- `UNCHANGED`: over unrelated prompts, the share of the base's own answer that is still given, right or wrong;
- these with `_GENERATED`: of the free greedy answers, the share that are the target, or the base's to the letter;
- each of these of the new facts and of all facts that were in force before and stay so, each group by itself; with
  `NEW_` or `OLD_` before it, of one group alone;
- `PROTECTED`: of the prompts that must not change, the share whose free greedy answer is the base's to the letter.

Of facts' prompts those that do not fit the model count as wrong. OP is `>=` or `>`; NUMBER is 0 to 1, or a percentage.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from malmen_cli.errors import UsageError

if TYPE_CHECKING:
    from malmen_cli.evaluation.results import Kind
    from malmen_cli.facts import Prompts

Group = Literal["new", "old", "protected"]

PROTECTED = "PROTECTED"
SLACK = 1e-9
"""By which a mean may miss a limit: sums of thirds are not whole in floating point."""


@dataclass(frozen=True, slots=True)
class Measure:
    """What is asked of facts, and of which of their prompts.

    Attributes:
        unchanged: against what the base answers, else against the target. generated: the free answer, else
            teacher-forced.
    """

    kind: Kind
    unchanged: bool = False
    generated: bool = False


_FORCED = {
    "ES": Measure("edit"),
    "GS": Measure("rephrase"),
    "LS": Measure("unrelated"),
    "UNCHANGED": Measure("unrelated", unchanged=True),
}
MEASURES: dict[str, Measure] = {
    **_FORCED,
    **{f"{name}_GENERATED": Measure(x.kind, x.unchanged, generated=True) for name, x in _FORCED.items()},
}
_PREFIXES: dict[str, tuple[Group, ...]] = {"": ("new", "old"), "NEW_": ("new",), "OLD_": ("old",)}
NAMES: dict[str, tuple[str, tuple[Group, ...]]] = {
    **{f"{prefix}{name}": (name, groups) for prefix, groups in _PREFIXES.items() for name in MEASURES},
    PROTECTED: (PROTECTED, ("protected",)),
}
"""What a gate may be named: its measure, and the groups of prompts that it holds for."""

_GATE = re.compile(r"(?P<name>\w+)\s*(?P<op>>=|>)\s*(?P<number>(?:\d+(?:\.\d*)?|\.\d+))\s*(?P<percent>%?)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate. Attributes: above: the limit itself is not enough. limit: 0 to 1."""

    name: str
    above: bool
    limit: float

    @property
    def measure(self) -> Measure | None:
        """None of protected prompts."""
        return MEASURES.get(NAMES[self.name][0])

    @property
    def groups(self) -> tuple[Group, ...]:
        return NAMES[self.name][1]

    def holds(self, figure: float) -> bool:
        return figure > self.limit + SLACK if self.above else figure >= self.limit - SLACK

    def __str__(self) -> str:
        return f"{self.name}{'>' if self.above else '>='}{self.limit:.10g}"


def parse_gates(text: str) -> tuple[Gate, ...]:
    """The gates of an expression, names in any case.

    Raises:
        UsageError: it is none; with the place and what was expected there.
    """
    gates: dict[str, Gate] = {}
    start = 0
    for part in text.split(","):
        place = start + len(part) - len(part.lstrip()) + 1
        gate = _gate(part, place)
        if gate.name in gates:
            raise _refused(part, place, f"{gate.name} is given twice")
        gates[gate.name] = gate
        start += len(part) + 1
    return tuple(gates.values())


def _gate(part: str, place: int) -> Gate:
    part = part.strip()
    if not part:
        raise _refused(part, place, "a gate is missing")
    match = _GATE.fullmatch(part)
    name = re.match(r"\w*", part, re.ASCII)[0].upper()  # type: ignore[index]
    if name not in NAMES:
        raise _refused(part, place, f"there is no gate {name!r}" if name else "a gate begins with its name")
    if match is None:
        rest = part[len(name) :]
        after = place + len(name) + len(rest) - len(rest.lstrip())
        rest = rest.lstrip()
        if not re.match(">", rest):
            raise _refused(part, after, f"after {name} must come >= or >: all of these are better the higher")
        number = rest.removeprefix(">").removeprefix("=")
        after += len(rest) - len(number.lstrip())
        raise _refused(part, after, "here must come a number, 0 to 1, or a percentage, and nothing after it")
    limit = float(match["number"]) / (100 if match["percent"] else 1)
    if limit > 1:
        meant = "" if match["percent"] or limit > 100 else f"; {match['number']}% may be meant"
        raise _refused(
            part, place + match.start("number"), f"{match['number'][:20]}{match['percent']} is above 1{meant}"
        )
    above = match["op"] == ">"
    if above and limit == 1:
        raise _refused(part, place + match.start("op"), "nothing is above 1")
    return Gate(name, above, limit)


def _refused(part: str, place: int, why: str) -> UsageError:
    return UsageError(
        f"--require: {why} (at character {place}, in {part[:60]!r})",
        remedy="Give gates such as 'ES>=0.95,LS>=0.9'; known are "
        f"{', '.join(MEASURES)}, each also with NEW_ or OLD_ before it, and {PROTECTED}.",
    )


@dataclass(frozen=True)
class Gates:
    """The gates of an apply, and the prompts whose answers must not change."""

    gates: tuple[Gate, ...]
    protect: Prompts | None = None

    @classmethod
    def of(cls, gates: Sequence[Gate], protect: Prompts | None) -> Gates | None:
        """The gates; with prompts and no gate on them, all of their answers must stay. None of nothing.

        Raises:
            UsageError: a gate on protected prompts, and none are given.
        """
        named = any(gate.name == PROTECTED for gate in gates)
        if named and protect is None:
            raise UsageError(
                f"the gate {PROTECTED} needs prompts that must not change",
                remedy="Name a file of them: --protect FILE.",
            )
        every = [Gate(PROTECTED, False, 1.0)] if protect is not None and not named else []
        return cls((*gates, *every), protect) if gates or every else None
