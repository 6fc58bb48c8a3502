"""One loaded model on which editors are compared: facts drawn once, the base asked once, every edit in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from malmen_cli.config import RunSettings
from malmen_cli.evaluation.comparison import Contender, Point, Question
from malmen_cli.evaluation.examination import Answers, Examination
from malmen_cli.evaluation.points import point_of
from malmen_cli.facts import Fact, FactSet
from malmen_cli.language_models.footprint import Job
from malmen_cli.ledger import EditorRecord, Ledger, ModelRecord, check_editor, reading
from malmen_cli.methods.per_fact import RowEditor
from malmen_cli.methods.set_method import SetMethod
from malmen_cli.operations.active import out_of_range
from malmen_cli.operations.draws import Draw, draw_of
from malmen_cli.operations.editors import load_editor
from malmen_cli.operations.evaluated import EvaluationOptions
from malmen_cli.operations.evaluation import drift_of, examination_of, read_text, running_text_of
from malmen_cli.operations.in_memory import edit_in_memory
from malmen_cli.operations.layers import TensorLayer
from malmen_cli.operations.memory import job_for, needs_for, place_model
from malmen_cli.operations.models import load_base
from malmen_cli.operations.spent import spending
from malmen_cli.operations.tensors import base_tensor


@dataclass(frozen=True)
class Entrant:
    """A contender with its editor, and how the language model is run for it.

    Attributes:
        files: of an editor that is kept nowhere, its two files.
    """

    contender: Contender
    record: EditorRecord
    settings: RunSettings
    layers: list[TensorLayer]
    files: Mapping[str, bytes] | None = None

    @property
    def run(self) -> tuple[Any, ...]:
        """Those with the same are edited in one loaded model."""
        names = tuple(layer.name for layer in self.layers)
        return names, self.settings.dtype, self.settings.chat_template, self.settings.end_of_text


class ComparisonBench:
    """One loaded model at its base, and the editors that go with it.

    Args:
        free: places of the facts that may be drawn.
    """

    def __init__(
        self,
        ledger: Ledger,
        model: ModelRecord,
        facts: FactSet,
        free: Sequence[int],
        entrants: Sequence[Entrant],
        question: Question,
        options: EvaluationOptions,
    ) -> None:
        self.ledger, self.model, self.facts, self.free = ledger, model, facts, free
        self.question, self.options = question, options
        self.entrants = {entrant.contender.label: entrant for entrant in entrants}
        first = entrants[0]
        job = self._job(dict.fromkeys(self.entrants))
        placement = place_model(ledger, model, first.layers, options.device, first.settings, job)
        self.device = torch.device(placement.device)
        self.editors: dict[str, RowEditor | SetMethod] = {}
        for label, entrant in self.entrants.items():
            files = check_editor(ledger, entrant.record) if entrant.files is None else entrant.files
            self.editors[label], _ = load_editor(files, model, entrant.record, self.device)
        needs = needs_for(model, first.layers, first.settings, self._job(self.editors))
        with reading(ledger, model):
            self.language_model = load_base(ledger, model, first.layers, placement, first.settings, needs)
        self.base = {layer.name: base_tensor(ledger, model, layer.tensor) for layer in first.layers}
        self.text = running_text_of(self.language_model, options)
        self._text_of_base: list[float] = []
        self._draws: dict[int, Draw] = {}
        self._answers: dict[tuple[int, int], tuple[Examination, Answers]] = {}

    def _job(self, editors: Mapping[str, RowEditor | SetMethod | None]) -> Job:
        """What takes the most memory of what is to be done; editors are those that are loaded already."""
        jobs = []
        for label, editor in editors.items():
            entrant = self.entrants[label]
            job = job_for("eval", entrant.settings, self.question.sizes[-1], self.options.batch_tokens, editor)
            jobs.append((sum(needs_for(self.model, entrant.layers, entrant.settings, job).values()), job))
        return max(jobs, key=lambda job: job[0])[1]

    def point(self, label: str, size: int, seed: int) -> Point:
        """Edit that many facts, ask them, and take the edit back."""
        entrant, draw = self.entrants[label], self.draw(seed)
        facts = draw.facts[:size]
        examination, before = self._of_base(seed, len(facts))
        if not self._text_of_base:
            self._text_of_base = read_text(self.text, self.options)
        with spending(self.device) as edit:
            weights, warnings = self._edited(entrant, facts)
            self.language_model.overlay(weights)
        try:
            with spending(self.device) as asking:
                progress = partial(self.options.progress, f"asking {label} at {size:,}")
                after = examination.ask(progress, base=before)
            drift, broken = drift_of(self.text, self._text_of_base, self.options)
        finally:
            self.language_model.overlay(self.base)
        report = replace(examination.report(before, after), facts=facts)
        return point_of(
            report,
            contender=label,
            n_edits=size,
            seed=seed,
            seconds=edit.seconds,
            asking_seconds=asking.seconds,
            peak_bytes=edit.peak_bytes,
            left_out={**report.left_out, "edit": size - len(facts)},
            measures={} if drift is None else {"drift": drift.ratio.value},
            warnings=[*warnings, *out_of_range(entrant.record, len(facts)), *broken],
        )

    def notes(self, wanted: Sequence[tuple[str, int, int]]) -> list[str]:
        """What a reader must know of the facts that were drawn."""
        found = []
        for seed in sorted({seed for _, _, seed in wanted}):
            draw = self.draw(seed)
            of_all = f"of {len(draw.facts):,} facts (seed {seed})"
            bare = sum(not fact.unrelated for fact in draw.asked)
            if draw.lent:
                prompts = len({other.prompt for fact in draw.asked for other in fact.unrelated})
                found.append(
                    f"{draw.lent:,} {of_all} have no unrelated prompts: they are asked those of facts not edited, "
                    f"{prompts:,} in all."
                )
            if bare:
                found.append(f"{bare:,} {of_all} have no unrelated prompts.")
            if draw.left_out:
                whole = len(draw.facts) == self.question.sizes[-1]
                rest = f"left out, and all {len(draw.facts):,} that do are asked, whatever the seed"
                fate = "others have their places" if whole else rest
                found.append(
                    f"Of the facts that were drawn (seed {seed}) {draw.left_out:,} did not fit the model: {fate}."
                )
        return found

    def draw(self, seed: int) -> Draw:
        """The facts of a seed, at the largest number of facts; the first ones are those of the smaller numbers.

        Raises:
            UsageError: none of them fits the model.
        """
        if seed not in self._draws:
            size, tokenizing = self.question.sizes[-1], self.language_model.tokenizing
            self._draws[seed] = draw_of(self.facts.facts, self.free, size, tokenizing, seed, nested=True)
        return self._draws[seed]

    def _of_base(self, seed: int, count: int) -> tuple[Examination, Answers]:
        """The questions about the first facts of a draw, and the base's answers, which are asked for once a draw.

        Of a 16-bit model once a number of facts: in other batches it rounds otherwise, and would seem to have changed.
        """
        asked = self.draw(seed).asked
        size = count if self.language_model.dtype.itemsize < 4 else len(asked)
        if (seed, size) not in self._answers:
            examination = examination_of(self.language_model, asked[:size], self.options)
            answers = examination.ask(partial(self.options.progress, f"asking the base (seed {seed})"))
            self._answers = {key: known for key, known in self._answers.items() if key[0] == seed}
            self._answers[seed, size] = examination, answers
        whole, answers = self._answers[seed, size]
        examination = examination_of(self.language_model, asked[:count], self.options)
        return examination, first_answers(answers, sum(question.fact < count for question in whole.questions))

    def _edited(self, entrant: Entrant, facts: Sequence[Fact]) -> tuple[dict[str, Tensor], list[str]]:
        """The weights after an edit of these facts alone, by module path, and warnings."""
        solved = edit_in_memory(
            self.ledger,
            self.model,
            self.editors[entrant.contender.label],
            entrant.layers,
            self.language_model,
            facts,
            batch_tokens=self.options.batch_tokens,
            progress=self.options.progress,
        )
        return solved.weights, solved.warnings


def first_answers(answers: Answers, count: int) -> Answers:
    """The answers to the first questions."""
    kept: dict[str, Any] = {}
    for field in fields(answers):
        value = getattr(answers, field.name)
        kept[field.name] = value if value is None else value[:count]
    return Answers(**kept)
