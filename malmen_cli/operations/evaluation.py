"""Evaluating an editor on a fact file, or an entry on the checkpoint as it stands. In memory, and nothing is written
but the evaluation itself by `keep`, which leaves checkpoints and entries alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from malmen_cli.errors import NumericalFailure, UsageError
from malmen_cli.evaluation.drift import Drift, RunningText, require_causal
from malmen_cli.evaluation.examination import Examination
from malmen_cli.evaluation.metrics import agreement, mean
from malmen_cli.evaluation.overlap import Overlap, TrainedOn
from malmen_cli.evaluation.report import Report
from malmen_cli.facts import Fact, FactSet
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.ledger import (
    EditorRecord,
    Entry,
    Ledger,
    ModelRecord,
    active_facts,
    check_editor,
    fates,
    reading,
    store,
)
from malmen_cli.ledger.evaluations import Evaluation, keep_evaluation
from malmen_cli.methods.registry import method_of
from malmen_cli.operations.active import (
    ActiveSet,
    Chosen,
    active_now,
    choose_editor,
    largest_set,
    out_of_range,
    reference,
)
from malmen_cli.operations.draws import choose, draw_of
from malmen_cli.operations.editors import settings_of, trained_on
from malmen_cli.operations.environment import environment
from malmen_cli.operations.evaluated import Evaluated, EvaluationOptions, NotInEffect, OtherFacts
from malmen_cli.operations.in_memory import edit_in_memory, open_editor
from malmen_cli.operations.layers import all_layers
from malmen_cli.operations.method_editors import editor_by_method, find_by_method
from malmen_cli.operations.models import load_base
from malmen_cli.operations.tensors import stored_tensor


def evaluate_file(ledger: Ledger, model: ModelRecord, facts: FactSet, options: EvaluationOptions) -> Evaluated:
    """Edit facts of a file, and those alone, from the base, and ask the base and the edited model.

    What is active in the checkpoint plays no part. Facts too long for the model are left out and counted, and others
    are drawn in their places. Those without unrelated prompts are lent some by facts of the file that are not edited.

    Facts with a prompt that the editor was trained on are left out too, unless `options.overlap` keeps them.

    Raises:
        UsageError: the model has no editor, no fact fits, or all were trained on; a drift of a model that is not
            causal. WrongBase: the checkpoint is not as the ledger says. Locked: another process writes to it.
    """
    with reading(ledger, model):  # whatever is read later are objects, which nobody changes
        known_editor = _editor(ledger, model, options)
        _require_drift(model, options)
        lessons = TrainedOn.of([]) if known_editor is None else lessons_of(ledger, known_editor)
        known = [] if lessons is None else [i for i, fact in enumerate(facts) if lessons.knows_prompt(fact)]
        free = _free(facts, known if options.overlap == "leave-out" else [])
        size = options.n_edits or (None if known_editor is None else largest_set(known_editor))
        size = min(size or len(free), len(free))
        editor = Chosen(known_editor) if known_editor is not None else _made(ledger, model, facts.facts, options)
        opened = open_editor(
            ledger,
            model,
            editor,
            size,
            device=options.device,
            batch_tokens=options.batch_tokens,
            dtype=options.dtype,
        )
    record = editor.record
    language_model = opened.language_model
    draw = draw_of(facts.facts, free, size, language_model.tokenizing, options.seed)
    examination = examination_of(language_model, draw.asked, options)
    text = running_text_of(language_model, options)
    before = examination.ask(partial(options.progress, "asking the base"))
    text_before = read_text(text, options)
    solved = edit_in_memory(
        ledger,
        model,
        opened.editor,
        opened.layers,
        language_model,
        draw.facts,
        batch_tokens=options.batch_tokens,
        progress=options.progress,
    )
    language_model.overlay(solved.weights)
    asking = partial(options.progress, "asking the edited model")
    report = examination.report(before, examination.ask(asking, base=before))
    drift, drift_warnings = drift_of(text, text_before, options)
    return Evaluated(
        model=model,
        editor=None if editor.made is not None else record.id,
        entry=None,
        source=facts.source,
        available=len(facts),
        sampled=size < len(free),
        seed=options.seed,
        numbers=[place + 1 for place in draw.places],
        edited=len(draw.facts),
        report=replace(report, facts=draw.facts, left_out={**report.left_out, "edit": draw.left_out}),
        not_in_effect=[],
        others=None,
        warnings=[
            *editor.warnings,
            *solved.warnings,
            *out_of_range(record, len(draw.facts)),
            *drift_warnings,
        ],
        facts_digest=facts.digest,
        method=method_of(record.config).name,
        made=None if editor.made is None else f"{editor.made.note}; it is kept nowhere",
        lent=draw.lent,
        overlap=overlap_of(lessons, draw.asked, report, len(known), left_out=options.overlap == "leave-out"),
        drift=drift,
    )


def evaluate_entry(ledger: Ledger, model: ModelRecord, entry: Entry, options: EvaluationOptions) -> Evaluated:
    """Score an entry's facts on the checkpoint as it stands, with the edits of all active facts in it.

    Asked are the base and the head. Facts that were reverted or superseded since are named and left out of the scores:
    the checkpoint is not meant to say them.

    Raises:
        UsageError: the entry brought no facts, or none of them is in effect. WrongBase: the checkpoint is not as the
            ledger says. Locked: another process writes to it.
    """
    with reading(ledger, model):
        return _evaluate_entry(ledger, model, entry, options)


def _evaluate_entry(ledger: Ledger, model: ModelRecord, entry: Entry, options: EvaluationOptions) -> Evaluated:
    with ledger.read() as db:
        facts = _facts_of(db, model, entry)
        gone = _not_in_effect(db, model, entry, facts)
        now = active_now(db, model)
        state = store.state(db, model.id)
        layers = {layer.tensor: layer for layer in all_layers(db, model)}
        own = {fact.edit_digest for fact in facts}
        beside = sorted(fact.fact_digest for fact in now.facts.values() if fact.edit_digest not in own)
        # The digests' order is as good as random, and the same every time.
        others = store.facts_with(db, beside[: options.check_old]).values()
        editor = store.editor(db, now.editor_id) if now.editor_id else None
        settings = settings_of(editor, options.dtype) if editor else None
    _require_drift(model, options)
    in_effect = sorted(set(range(1, len(facts) + 1)) - {fact.number for fact in gone})
    if not in_effect:
        raise UsageError(
            f"none of the {len(facts):,} facts of #{entry.number} is in effect any more",
            remedy="malmen log tells what reverted or superseded them; malmen eval FILE scores a fact file",
        )
    numbers = [in_effect[i] for i in choose(len(in_effect), options.n_edits, options.seed)]
    language_model = load_base(ledger, model, list(layers.values()), options.device, settings)
    examination = examination_of(language_model, [facts[number - 1] for number in numbers], options)
    text = running_text_of(language_model, options)
    before = examination.ask(partial(options.progress, "asking the base"))
    text_before = read_text(text, options)
    asked, others_before = _edit_success(language_model, others, options.batch_tokens)
    records = model.manifest.tensors
    weights: dict[str, Tensor] = {
        layers[name].name: stored_tensor(ledger.objects, records[name], digest) for name, digest in state.items()
    }
    language_model.overlay(weights)
    asking = partial(options.progress, "asking the checkpoint")
    report = examination.report(before, examination.ask(asking, base=before))
    _, others_after = _edit_success(language_model, others, options.batch_tokens)
    drift, drift_warnings = drift_of(text, text_before, options)
    return Evaluated(
        model=model,
        editor=now.editor_id,
        entry=entry,
        source=entry.source,
        available=len(facts),
        sampled=len(numbers) < len(in_effect),
        seed=options.seed,
        numbers=numbers,
        edited=len(now.facts),
        report=report,
        not_in_effect=gone,
        others=OtherFacts(len(beside), asked, others_before, others_after),
        warnings=drift_warnings,
        facts_digest=FactSet(tuple(facts), source="").digest,
        overlap=_overlap_of_entry(ledger, editor, report),
        drift=drift,
        method=None if editor is None else method_of(editor.config).name,
    )


def keep(ledger: Ledger, evaluated: Evaluated, asked_for: Mapping[str, Any], device: str, command: str) -> Evaluation:
    """Write an evaluation into the ledger, open for writing: its scores, and of each fact every answer.

    Nothing else of the ledger is touched, and no checkpoint. Args: asked_for: the options, as `--json` shows them.
    """
    said = {**asked_for, **evaluated.as_dict()}
    facts = said.pop("facts")
    del said["groups"]  # which follow from the facts
    return keep_evaluation(
        ledger,
        facts,
        model_id=evaluated.model.id,
        facts_digest=evaluated.facts_digest,
        details={"scores": said, **environment(device)},
        entry_id=None if evaluated.entry is None else evaluated.entry.id,
        editor_id=evaluated.editor,
        source=evaluated.source,
        command=command,
    )


def lessons_of(ledger: Ledger, editor: EditorRecord) -> TrainedOn | None:
    """What an editor was trained on; None where it does not say. Methods that are not trained have seen nothing."""
    if not method_of(editor.config).trained:
        return TrainedOn.of([])
    return trained_on(check_editor(ledger, editor), editor)


def overlap_of(
    lessons: TrainedOn | None, facts: Sequence[Fact], report: Report, known: int, *, left_out: bool
) -> Overlap | None:
    """How scored facts stand to the training, with the scores apart of those that share a subject with it.

    Args:
        facts: that were asked, as the report has them. known: facts of the whole file with a prompt of the training.
    """
    if lessons is None:
        return None
    same = [i for i, fact in enumerate(facts) if lessons.knows_subject(fact)]
    parts = (same, sorted(set(range(len(facts))).difference(same))) if same else ([], [])
    apart = (report.part(part).six_scores if part else None for part in parts)
    return Overlap(known, left_out, len(same), lessons.known_unrelated(facts), *apart)


def _overlap_of_entry(ledger: Ledger, editor: EditorRecord | None, report: Report) -> Overlap | None:
    """Nothing is left out: whoever has applied these facts wants to know how they stand."""
    lessons = None if editor is None else lessons_of(ledger, editor)
    known = 0 if lessons is None else sum(map(lessons.knows_prompt, report.facts))
    return overlap_of(lessons, report.facts, report, known, left_out=False)


def _free(facts: FactSet, known: Sequence[int]) -> list[int]:
    """Places of the facts that are not known. Raises UsageError where there are none."""
    free = sorted(set(range(len(facts))).difference(known))
    if not free:
        raise UsageError(
            f"the editor was trained on all of the {len(facts):,} facts: their scores would say nothing",
            remedy="evaluate facts that it has not seen, or give --overlap keep to score them all the same",
        )
    return free


def _require_drift(model: ModelRecord, options: EvaluationOptions) -> None:
    if options.drift is not None:
        require_causal(model.architecture.get("task", "causal"))


def running_text_of(model: LanguageModel, options: EvaluationOptions) -> RunningText | None:
    """The text whose drift is asked for, as this model reads it."""
    return None if options.drift is None else RunningText(model, *options.drift)


def read_text(text: RunningText | None, options: EvaluationOptions) -> list[float]:
    """What the model, as it stands, says of it (`RunningText.ask`); nothing without a text."""
    if text is None:
        return []
    return text.ask(batch_tokens=options.batch_tokens, progress=partial(options.progress, "reading the text"))


def drift_of(
    text: RunningText | None, before: Sequence[float], options: EvaluationOptions
) -> tuple[Drift | None, list[str]]:
    """The drift of the model as it stands; without one, and a warning, where the edit has broken the model for it: the
    answers tell more of that than an error would."""
    if text is None:
        return None, []
    try:
        return text.drift(before, read_text(text, options)), []
    except NumericalFailure as error:
        return None, [error.message]


def _editor(ledger: Ledger, model: ModelRecord, options: EvaluationOptions) -> EditorRecord | None:
    """The editor of a file's evaluation: any of the model's, whichever is in force, since nothing is mixed.

    None where the method is one whose editors are made, and none of them is kept.
    """
    if (request := options.method) is not None:
        found = find_by_method(ledger, model, request, beside=True)
        if found is not None or not request.method.trained:
            return found
        return editor_by_method(ledger, model, request, [], beside=True).record  # which says that there is none
    with ledger.read() as db:
        now = active_now(db, model) if options.editor is None else ActiveSet({}, None)
        return choose_editor(db, model, options.editor, now)


def _made(ledger: Ledger, model: ModelRecord, facts: Sequence[Fact], options: EvaluationOptions) -> Chosen:
    """An editor made of the file's facts, in memory, whichever of them are asked."""
    assert options.method is not None
    return editor_by_method(
        ledger,
        model,
        options.method.in_dtype(options.dtype),
        facts,
        beside=True,
        device=options.device,
        batch_tokens=options.batch_tokens,
        progress=options.progress,
    )


def _facts_of(db: sqlite3.Connection, model: ModelRecord, entry: Entry) -> Sequence[Fact]:
    """The facts that an entry brought into effect: of a rebase all that were active then."""
    if entry.status != "applied":
        raise UsageError(
            f"the interrupted {entry.kind} #{entry.number} has no facts in effect", remedy="malmen recover"
        )
    if entry.kind == "apply":
        return store.facts_of(db, entry)
    if entry.kind == "rebase":
        active = active_facts(store.fold(db, model.id, entry.number)).values()
        found = store.facts_with(db, [fact.fact_digest for fact in active])
        return [found[fact.fact_digest] for fact in active]
    raise UsageError(
        f"#{entry.number} is a {entry.kind} entry and brought no facts of its own",
        remedy="name an apply entry (malmen log), or a fact file",
    )


def _not_in_effect(
    db: sqlite3.Connection, model: ModelRecord, entry: Entry, facts: Sequence[Fact]
) -> list[NotInEffect]:
    """Those of an entry's facts whose edits the checkpoint does not hold now."""
    became = fates(store.fold(db, model.id), entry.id, map(reference, facts))
    return [
        NotInEffect(number, fact, fate)
        for number, (fact, fate) in enumerate(zip(facts, became, strict=True), 1)
        if fate == "superseded" or fate == "reverted"
    ]


def _edit_success(model: LanguageModel, facts: Iterable[Fact], batch_tokens: int | None) -> tuple[int, float | None]:
    """How many of the facts could be asked, and their ES."""
    texts = [text for fact in facts if (text := model.tokenizing.fits(fact.prompt, fact.target)) is not None]
    return len(texts), mean(agreement(model.predictions(texts, batch_tokens=batch_tokens), texts))


def examination_of(model: LanguageModel, facts: Sequence[Fact], options: EvaluationOptions) -> Examination:
    """All prompts of some facts, to be asked as the options say."""
    return Examination(
        model,
        facts,
        generate=options.generate,
        max_new_tokens=options.max_new_tokens,
        batch_tokens=options.batch_tokens,
    )
