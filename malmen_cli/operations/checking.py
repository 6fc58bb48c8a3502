"""Asking a model before and after an edit: a sample of answers, ES / GS / LS, and which facts are still wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from malmen_cli.evaluation.metrics import Scores, agreement
from malmen_cli.evaluation.results import Kind, prompts_of
from malmen_cli.facts import Fact
from malmen_cli.language_models.host_memory import give_back_freed
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.texts import Tokens
from malmen_cli.language_models.tokenizing import Tokenizing
from malmen_cli.operations.asked_states import BLOCK, AskedStates
from malmen_cli.operations.packed_texts import PackedTexts

NAMED = 1000
"""Most new facts that are still wrong which an entry names; all of them are counted."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled prompt and what the model said to it, greedily, for as many tokens as the target has."""

    prompt: str
    target: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class WrongFact:
    """An active fact whose target the edited model does not give, teacher-forced. `new`: of this entry.

    `answer` ends with its first wrong token: so far it is what the model says freely too.
    """

    prompt: str
    target: str
    answer: str
    new: bool
    edit_digest: str


@dataclass(frozen=True)
class Check:
    """What an entry did, as asked of the model in memory before the checkpoint was written.

    Attributes:
        before, after: scores of the new facts. checked_old: how many older facts were asked.
        old_success: ES of those. answers: the sample.
        wrong: facts that are still wrong, of the new ones the first `NAMED`. still_wrong: how many there are.
    """

    before: Scores
    after: Scores
    checked_old: int
    old_success: float | None
    wrong: list[WrongFact]
    answers: list[Answer]
    still_wrong: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "checked_old": self.checked_old,
            "old_ES": self.old_success,
            "still_wrong": self.still_wrong,
            "wrong": [asdict(wrong) for wrong in self.wrong],
            "answers": [asdict(answer) for answer in self.answers],
        }


class Questions:
    """The prompts of an entry's facts and of some older ones, tokenised once and asked before and after.

    Args:
        states: of the model that is asked. edits: the new facts' own prompts, where they are tokenised already.
    """

    def __init__(
        self,
        model: LanguageModel,
        states: AskedStates,
        new: Sequence[Fact],
        old: Sequence[Fact],
        sample: int,
        edits: PackedTexts | None = None,
    ) -> None:
        tokens = model.tokenizing
        # A fact of earlier entries may be one that is refused today.
        asked = [(fact, text) for fact in old if (text := tokens.fits(fact.prompt, fact.target)) is not None]
        self.model, self.new, self.old, self._states = model, new, [fact for fact, _ in asked], states
        self.edits = edits or PackedTexts(tokens.all_of((fact.prompt, fact.target) for fact in new))
        self.old_edits = PackedTexts(text for _, text in asked)
        self.rephrases, self.unrelated = (_fitting(tokens, new, kind) for kind in ("rephrase", "unrelated"))
        self.sample = min(sample, len(new))

    def scores(self) -> Scores:
        """ES, GS and LS of the new facts as the model stands."""
        return self._scores(self._ask(self.edits))

    def _ask(self, texts: PackedTexts) -> Iterator[tuple[Tokens, list[int]]]:
        """Each text, and what the model predicts on it."""
        twice = texts is not self.old_edits
        for block in texts.blocks(BLOCK):
            once = partial(self.model.predictions, batch_tokens=self._states.batch_tokens)
            found = self._states.predictions(block) if twice else once(block)
            give_back_freed()
            yield from zip(block, found, strict=True)

    def _scores(self, said: Iterable[tuple[Tokens, list[int]]]) -> Scores:
        """The same, from what the model predicts on the edit prompts."""
        return Scores(_mean(said), *(_mean(self._ask(texts)) for texts in (self.rephrases, self.unrelated)))

    def answers(self) -> list[str]:
        """Greedy answers to the sample, each as long as its target."""
        prompts = [fact.prompt for fact in self.new[: self.sample]]
        caps = [tokens.supervised for tokens in self.edits[: self.sample]]
        return [answer.text for answer in self.model.generate(prompts, caps, batch_tokens=self._states.batch_tokens)]

    def check(self, before: Scores, answers_before: Sequence[str]) -> Check:
        """Ask everything of the edited model."""
        sampled = zip(self.new, answers_before, self.answers(), strict=False)
        wrong = _Wrong(self.model, NAMED)
        after = self._scores(wrong.watch(self.new, self._ask(self.edits), is_new=True))
        wrong.room = len(self.old)
        old_success = _mean(wrong.watch(self.old, self._ask(self.old_edits), is_new=False))
        return Check(
            before=before,
            after=after,
            checked_old=len(self.old),
            old_success=old_success,
            wrong=wrong.named,
            answers=[Answer(fact.prompt, fact.target, was, now) for fact, was, now in sampled],
            still_wrong=wrong.count,
        )


class _Wrong:
    """Notes which facts are wrong as their answers pass by: some by name, all by number."""

    def __init__(self, model: LanguageModel, room: int) -> None:
        self.model, self.room = model, room
        self.named: list[WrongFact] = []
        self.count = 0

    def watch(
        self, facts: Sequence[Fact], said: Iterable[tuple[Tokens, list[int]]], *, is_new: bool
    ) -> Iterator[tuple[Tokens, list[int]]]:
        for fact, (tokens, predicted) in zip(facts, said, strict=True):
            if tuple(predicted) != tokens.labels:
                self.count += 1
                if self.room:
                    self.room -= 1
                    wrong = next(i for i, (a, b) in enumerate(zip(predicted, tokens.labels, strict=True)) if a != b)
                    answer = self.model.tokenizing.text_of(predicted[: wrong + 1])
                    self.named.append(WrongFact(fact.prompt, fact.target, answer, is_new, fact.edit_digest))
            yield tokens, predicted


def _mean(said: Iterable[tuple[Tokens, list[int]]]) -> float | None:
    """Mean share of labels that were predicted, 0 to 1; None of nothing."""
    total, count = 0.0, 0
    for tokens, predicted in said:
        total += agreement([predicted], [tokens])[0]
        count += 1
    return total / count if count else None


def _fitting(tokens: Tokenizing, facts: Sequence[Fact], kind: Kind) -> PackedTexts:
    """The facts' prompts of a kind, without those that the model has no room for."""
    texts = (tokens.fits(prompt, target) for fact in facts for _, prompt, target in prompts_of(fact, (kind,)))
    return PackedTexts(text for text in texts if text is not None)
