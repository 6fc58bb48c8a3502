"""Asking a model everything about some facts, in one state of its weights and in another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from malmen_cli.evaluation.generation import ROOM, exact_match
from malmen_cli.evaluation.metrics import agreement
from malmen_cli.evaluation.report import KINDS, Kind, Report, Result, Said
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
    """What one state of the model answers, question by question: tokens predicted teacher-forced, text generated."""

    predictions: list[list[int]]
    generated: list[Generated] | None


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
        batch_tokens: int = 1024,
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

    def ask(self, progress: Callable[[int, int], None] = lambda done, total: None) -> Answers:
        """Ask the model as it stands. `progress` is called with answers generated, and how many there will be."""
        texts = [question.tokens for question in self.questions]
        predictions = self.model.predictions(texts, batch_tokens=self.batch_tokens)
        if not self.generate:
            return Answers(predictions, None)
        generated = self.model.generate(
            [question.prompt for question in self.questions],
            [self.max_new_tokens or text.supervised + ROOM for text in texts],
            batch_tokens=self.batch_tokens,
            progress=progress,
        )
        return Answers(predictions, generated)

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
            Said(self.model.tokenizing.text_of(predicted), accuracy)
            for predicted, accuracy in zip(answers.predictions, accuracies, strict=True)
        ]
        if answers.generated is None:
            return said
        wanted = [self.model.tokenizing.wanted(question.target, question.tokens) for question in self.questions]
        return [
            replace(x, generated=free.text, stopped=free.stopped, exact_match=exact_match(free, target))
            for x, free, target in zip(said, answers.generated, wanted, strict=True)
        ]


def prompts_of(fact: Fact) -> Iterator[tuple[Kind, str, str]]:
    """Every prompt of a fact, with its kind and the target that it should get; of unrelated ones, the gold answer."""
    yield "edit", fact.prompt, fact.target
    for prompt in fact.rephrases:
        yield "rephrase", prompt, fact.target
    for other in fact.unrelated:
        yield "unrelated", other.prompt, other.target


def _sameness(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> list[float]:
    """Per text the share of places at which both states predict the same token."""
    return [
        sum(was == now for was, now in zip(first, second, strict=True)) / len(first)
        for first, second in zip(before, after, strict=True)
    ]
