"""Asking a model before and after an edit: a sample of answers, ES / GS / LS, and which facts are still wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from malmen_cli.evaluation.metrics import Scores, agreement, mean, token_accuracy
from malmen_cli.facts import Fact
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.texts import Tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """One sampled prompt and what the model said to it, greedily, for as many tokens as the target has."""

    prompt: str
    target: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class WrongFact:
    """An active fact whose target the edited model does not give, teacher-forced. `new`: of this entry."""

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
        old_success: ES of those. wrong: every asked fact that is still wrong. answers: the sample.
    """

    before: Scores
    after: Scores
    checked_old: int
    old_success: float | None
    wrong: list[WrongFact]
    answers: list[Answer]

    def as_dict(self) -> dict[str, Any]:
        return {
            "before": self.before.as_dict(),
            "after": self.after.as_dict(),
            "checked_old": self.checked_old,
            "old_ES": self.old_success,
            "wrong": [asdict(wrong) for wrong in self.wrong],
            "answers": [asdict(answer) for answer in self.answers],
        }


class Questions:
    """The prompts of an entry's facts and of some older ones, tokenised once and asked before and after."""

    def __init__(self, model: LanguageModel, new: Sequence[Fact], old: Sequence[Fact], sample: int) -> None:
        tokens = model.tokenizing
        self.model, self.new, self.old = model, new, old
        self.edits = [tokens(fact.prompt, fact.target) for fact in new]
        self.old_edits = [tokens(fact.prompt, fact.target) for fact in old]
        self.rephrases = _fitting(tokens.fits(prompt, fact.target) for fact in new for prompt in fact.rephrases)
        self.unrelated = _fitting(tokens.fits(other.prompt, other.target) for fact in new for other in fact.unrelated)
        self.sample = min(sample, len(new))

    def scores(self) -> Scores:
        """ES, GS and LS of the new facts as the model stands."""
        return self._scores(self.model.predictions(self.edits))

    def _scores(self, predictions: Sequence[Sequence[int]]) -> Scores:
        """The same, from what the model predicts on the edit prompts."""
        edit_success = agreement(predictions, self.edits)
        others = (token_accuracy(self.model, texts) for texts in (self.rephrases, self.unrelated))
        return Scores(mean(edit_success), *map(mean, others))

    def answers(self) -> list[str]:
        """Greedy answers to the sample, each as long as its target."""
        prompts = [fact.prompt for fact in self.new[: self.sample]]
        caps = [tokens.supervised for tokens in self.edits[: self.sample]]
        return [answer.text for answer in self.model.generate(prompts, caps)]

    def check(self, before: Scores, answers_before: Sequence[str]) -> Check:
        """Ask everything of the edited model."""
        sampled = zip(self.new, answers_before, self.answers(), strict=False)
        new, old = self.model.predictions(self.edits), self.model.predictions(self.old_edits)
        wrong = self._wrong(self.new, self.edits, new, is_new=True)
        wrong += self._wrong(self.old, self.old_edits, old, is_new=False)
        return Check(
            before=before,
            after=self._scores(new),
            checked_old=len(self.old),
            old_success=mean(agreement(old, self.old_edits)),
            wrong=wrong,
            answers=[Answer(fact.prompt, fact.target, was, now) for fact, was, now in sampled],
        )

    def _wrong(
        self, facts: Sequence[Fact], edits: Sequence[Tokens], predictions: Sequence[list[int]], *, is_new: bool
    ) -> list[WrongFact]:
        return [
            WrongFact(
                fact.prompt,
                fact.target,
                self.model.tokenizing.text_of(predicted),
                is_new,
                fact.edit_digest,
            )
            for fact, tokens, predicted in zip(facts, edits, predictions, strict=True)
            if tuple(predicted) != tokens.labels
        ]


def _fitting(texts: Any) -> list[Tokens]:
    return [text for text in texts if text is not None]
