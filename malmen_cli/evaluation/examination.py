"""Asking a model everything about some facts, in one state of its weights and in another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp, isfinite

from malmen_cli.evaluation.generation import ROOM, contains, exact_match
from malmen_cli.evaluation.metrics import agreement, asked, likelihoods
from malmen_cli.evaluation.report import Report
from malmen_cli.evaluation.results import KINDS, Kind, Result, Said, prompts_of
from malmen_cli.facts import Fact
from malmen_cli.language_models.generation import Generated
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.texts import Tokens


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt of a fact (its index), tokenised with the target that it should get."""

    kind: Kind
    fact: int
    prompt: str
    target: str
    tokens: Tokens


@dataclass(frozen=True)
class Answers:
    """What one state of the model answers, question by question.

    Attributes:
        predictions: the tokens predicted, teacher-forced. generated: the free answers, None where there are none.
        new: the target's mean log-likelihood per token. old: that of what the base answers by itself, None where that
            is not known or is the target.
    """

    predictions: list[list[int]]
    generated: list[Generated] | None
    new: list[float]
    old: list[float | None]


class Examination:
    """The prompts of some facts, tokenised once, asked once per state of the model.

    Prompts that cannot be asked (longer than the model's positions, say) are left out and counted. A fact without
    rephrases or unrelated prompts contributes its edit prompt alone.

    Args:
        generate: let the model answer freely too. max_new_tokens: cap of each such answer, in tokens; None for the
            target's own and 16 more. batch_tokens: padded tokens per batch of the model.
    """

    def __init__(
        self,
        model: LanguageModel,
        facts: Sequence[Fact],
        *,
        generate: bool = True,
        max_new_tokens: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        self.model, self.facts, self.batch_tokens = model, facts, batch_tokens
        self.generate, self.max_new_tokens = generate, max_new_tokens
        self.questions: list[Question] = []
        self.left_out: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        for index, fact in enumerate(facts):
            for kind, prompt, target in prompts_of(fact):
                tokens = model.tokenizing.fits(prompt, target)
                if tokens is None:
                    self.left_out[kind] += 1
                else:
                    self.questions.append(Question(kind, index, prompt, target, tokens))

    def ask(
        self, progress: Callable[[int, int], None] = lambda done, total: None, *, base: Answers | None = None
    ) -> Answers:
        """Ask the model as it stands. `progress` is called with answers generated, and how many there will be.

        Args:
            base: what the base has answered, whose answers are the old ones; None where the model is the base now.
        """
        texts = [question.tokens for question in self.questions]
        predictions, new = asked(self.model, texts, batch_tokens=self.batch_tokens)
        generated = None
        if self.generate:
            generated = self.model.generate(
                [question.prompt for question in self.questions],
                [self.max_new_tokens or text.supervised + ROOM for text in texts],
                batch_tokens=self.batch_tokens,
                progress=progress,
            )
        return Answers(predictions, generated, new, self._old(generated if base is None else base.generated))

    def _old(self, answers: list[Generated] | None) -> list[float | None]:
        """Per question the mean log-likelihood of what the base answers: as many of its tokens as the target has."""
        old: list[float | None] = [None] * len(self.questions)
        texts: dict[int, Tokens] = {}
        tokenizing = self.model.tokenizing
        for i, (question, answer) in enumerate(zip(self.questions, answers or (), strict=False)):
            if question.kind == "unrelated" or not answer.text:
                continue
            # Token by token as it was said: its text may be other tokens where a prompt with a target is tokenised.
            said = tokenizing.said(question.prompt, answer.tokens, question.tokens.supervised)
            if said is not None and tokenizing.text_of(said.labels) != tokenizing.wanted(question.tokens):
                texts[i] = said
        found = likelihoods(self.model, list(texts.values()), batch_tokens=self.batch_tokens)
        for i, likelihood in zip(texts, found, strict=True):
            old[i] = likelihood
        return old

    def report(self, before: Answers, after: Answers) -> Report:
        """The scores of two states and every answer; `before` is what `unchanged` is measured from, the base."""
        results = [
            Result(question.kind, question.fact, question.prompt, question.target, was, now, same)
            for question, was, now, same in zip(
                self.questions,
                self._said(before),
                self._said(after),
                _sameness(before.predictions, after.predictions),
                strict=True,
            )
        ]
        return Report(self.facts, results, self.left_out)

    def _said(self, answers: Answers) -> list[Said]:
        accuracies = agreement(answers.predictions, [question.tokens for question in self.questions])
        said = [
            Said(
                self.model.tokenizing.text_of(predicted),
                accuracy,
                new_probability=_probability(new),
                old_probability=_probability(old),
            )
            for predicted, accuracy, new, old in zip(
                answers.predictions, accuracies, answers.new, answers.old, strict=True
            )
        ]
        if answers.generated is None:
            return said
        classifies = self.model.task == "classification"
        wanted = [self.model.tokenizing.wanted(question.tokens) for question in self.questions]
        return [
            replace(
                x,
                generated=free.text,
                stopped=free.stopped,
                exact_match=exact_match(free, target),
                # The name of a class is no text: "not toxic" has no "toxic" in it.
                contains=exact_match(free, target) if classifies else contains(free.text, target),
            )
            for x, free, target in zip(said, answers.generated, wanted, strict=True)
        ]


def _probability(likelihood: float | None) -> float | None:
    """Of a log-likelihood; None of none, or of a model whose numbers have overflowed."""
    return None if likelihood is None or not isfinite(likelihood) else exp(likelihood)


def _sameness(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> list[float]:
    """Per text the share of places at which both states predict the same token."""
    return [
        sum(was == now for was, now in zip(first, second, strict=True)) / len(first)
        for first, second in zip(before, after, strict=True)
    ]
