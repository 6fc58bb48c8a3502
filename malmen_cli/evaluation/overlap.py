"""What an editor was trained on, and which facts of an evaluation it has thereby seen.

An editor keeps no training text, only short digests of it: enough to know a prompt again.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from malmen_cli.evaluation.six_scores import SixScores
from malmen_cli.facts import Fact

_BYTES = 6
"""Of each digest: among a million of a training and ten thousand of an evaluation, one in 30,000 finds a false one."""
MOST = 1_000_000
"""Digests that an editor keeps, 8 bytes each in its description, which has a limit; of larger trainings none."""


@dataclass(frozen=True)
class TrainedOn:
    """What training rows said, as digests that leave case and white space out of account.

    Attributes:
        prompts: edit prompts and rephrases. unrelated: prompts whose answers were to stay. subjects: where facts name
            them. Held-out rows are in none: they were asked, and nothing was learned of them.
    """

    prompts: frozenset[bytes]
    unrelated: frozenset[bytes]
    subjects: frozenset[bytes]

    @classmethod
    def of(cls, facts: Sequence[Fact]) -> TrainedOn:
        return cls(
            frozenset(_digest(prompt) for fact in facts for prompt in (fact.prompt, *fact.rephrases)),
            frozenset(_digest(other.prompt) for fact in facts for other in fact.unrelated),
            frozenset(_digest(fact.subject) for fact in facts if fact.subject),
        )

    def as_dict(self) -> dict[str, Any] | None:
        """Sorted digests end to end, as base64; None of too many to keep."""
        if len(self.prompts) + len(self.unrelated) + len(self.subjects) > MOST:
            return None
        return {
            name: base64.b64encode(b"".join(sorted(getattr(self, name)))).decode()
            for name in ("prompts", "unrelated", "subjects")
        }

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> TrainedOn:
        """The inverse of `as_dict`. Raises ValueError, KeyError or TypeError for what it could not have made."""
        return cls(*(_digests(said[name]) for name in ("prompts", "unrelated", "subjects")))

    def knows_prompt(self, fact: Fact) -> bool:
        """Whether the edit prompt or a rephrase was one of a training row."""
        return any(_digest(prompt) in self.prompts for prompt in (fact.prompt, *fact.rephrases))

    def knows_subject(self, fact: Fact) -> bool:
        return fact.subject is not None and _digest(fact.subject) in self.subjects

    def known_unrelated(self, facts: Iterable[Fact]) -> int:
        """How many of the facts' unrelated prompts a training row had too."""
        return sum(_digest(other.prompt) in self.unrelated for fact in facts for other in fact.unrelated)


@dataclass(frozen=True, slots=True)
class Overlap:
    """How an evaluation's facts stand to the editor's training.

    Attributes:
        same_prompt: facts of the file with a training row's prompt. left_out: whether they were.
        same_subject: scored facts that share a subject with a training row, and theirs; other: the scores of the rest.
        same_unrelated: unrelated prompts of scored facts that training rows had too.
    """

    same_prompt: int
    left_out: bool
    same_subject: int
    same_unrelated: int
    scores_same_subject: SixScores | None = None
    scores_other: SixScores | None = None

    def as_dict(self) -> dict[str, Any]:
        same, other = self.scores_same_subject, self.scores_other
        return {
            "same_prompt": self.same_prompt,
            "left_out": self.same_prompt if self.left_out else 0,
            "same_subject": self.same_subject,
            "same_unrelated_prompts": self.same_unrelated,
            "six_scores": {
                "same_subject": None if same is None else same.as_dict(),
                "other_subjects": None if other is None else other.as_dict(),
            },
        }


def _digest(text: str) -> bytes:
    return sha256(" ".join(text.casefold().split()).encode()).digest()[:_BYTES]


def _digests(text: str) -> frozenset[bytes]:
    data = base64.b64decode(text, validate=True)
    if len(data) % _BYTES or len(data) > MOST * _BYTES:
        raise ValueError("its list of what it was trained on is damaged")
    return frozenset(data[place : place + _BYTES] for place in range(0, len(data), _BYTES))
