"""Evaluating an editor on a fact file, or an entry on the checkpoint as it stands. In memory: nothing is written."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from malmen_cli.errors import UsageError
from malmen_cli.evaluation.examination import Examination
from malmen_cli.evaluation.metrics import agreement, mean
from malmen_cli.facts import Fact, FactSet
from malmen_cli.facts.lending import lend_unrelated
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.ledger import (
    EditorRecord,
    Entry,
    Ledger,
    ModelRecord,
    active_facts,
    check_editor,
    reading,
    remaining,
    store,
)
from malmen_cli.ledger.row_files import RowTable
from malmen_cli.operations.active import ActiveSet, active_now, choose_editor, edit_digests, out_of_range, reference
from malmen_cli.operations.editors import load_editor, settings_of
from malmen_cli.operations.evaluated import Evaluated, EvaluationOptions, NotInEffect, OtherFacts
from malmen_cli.operations.layers import all_layers, layers_of
from malmen_cli.operations.memory import job_for, needs_for, place_model
from malmen_cli.operations.models import load_base
from malmen_cli.operations.rows import RowReader, capture_rows
from malmen_cli.operations.solving import solve_active
from malmen_cli.operations.tensors import stored_tensor


def evaluate_file(ledger: Ledger, model: ModelRecord, facts: FactSet, options: EvaluationOptions) -> Evaluated:
    """Edit facts of a file, and those alone, from the base, and ask the base and the edited model.

    What is active in the checkpoint plays no part. Facts too long for the model are left out and counted. Those without
    unrelated prompts are lent some by facts of the file that are not edited.

    Raises:
        UsageError: the model has no editor, or no fact fits. WrongBase: the checkpoint is not as the ledger says.
        Locked: another process writes to it.
    """
    with reading(ledger, model):
        return _evaluate_file(ledger, model, facts, options)


def _evaluate_file(ledger: Ledger, model: ModelRecord, facts: FactSet, options: EvaluationOptions) -> Evaluated:
    with ledger.read() as db:
        record = _editor(db, model, options.editor)
    size = options.n_edits or record.config["config"]["facts_per_step"]
    places = choose(len(facts), size, options.seed)
    settings = settings_of(record, options.dtype)
    job = job_for("eval", settings, len(places), options.batch_tokens)
    placement = place_model(ledger, model, layers_of(record.config), options.device, settings, job)
    editor, layers = load_editor(check_editor(ledger, record), model, record, placement.device)
    job = job_for("eval", settings, len(places), options.batch_tokens, editor)
    language_model = load_base(ledger, model, layers, placement, settings, needs_for(model, layers, settings, job))
    fits = language_model.tokenizing.fits
    fitting = [i for i in places if fits(facts.facts[i].prompt, facts.facts[i].target) is not None]
    if not fitting:
        first = facts.facts[places[0]]
        raise language_model.tokenizing.nothing_fits(first.prompt, first.target)
    chosen = [facts.facts[i] for i in fitting]
    prompts = {fact.prompt for fact in chosen}
    asked = lend_unrelated(chosen, [fact for fact in facts if fact.prompt not in prompts], options.seed)
    lent = sum(len(fact.unrelated) > len(own.unrelated) for fact, own in zip(asked, chosen, strict=True))
    examination = _examination(language_model, asked, options)
    before = examination.ask(partial(options.progress, "asking the base"))
    progress = partial(options.progress, "capturing rows")
    # Captured anew even where rows are stored: the scores are the same whatever the ledger has seen.
    fresh = capture_rows(language_model, editor, chosen, batch_tokens=options.batch_tokens, progress=progress)
    tables = {rows.layer: RowTable(edit_digests({fact.prompt: reference(fact) for fact in chosen})) for rows in fresh}
    for rows in fresh:
        tables[rows.layer].note_pack(rows.data.digest, rows.spans)
    solved = solve_active(
        ledger,
        model,
        editor,
        layers,
        tables.__getitem__,
        RowReader(ledger.objects, fresh),
        {},
        language_model.device,
    )
    language_model.overlay(solved.weights)
    report = examination.report(before, examination.ask(partial(options.progress, "asking the edited model")))
    return Evaluated(
        model=model,
        editor=record.id,
        entry=None,
        source=facts.source,
        available=len(facts),
        sampled=len(places) < len(facts),
        seed=options.seed,
        numbers=[i + 1 for i in fitting],
        edited=len(chosen),
        report=replace(report, facts=chosen, left_out={**report.left_out, "edit": len(places) - len(fitting)}),
        not_in_effect=[],
        others=None,
        warnings=solved.warnings + out_of_range(record, len(chosen)),
        lent=lent,
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
        settings = settings_of(store.editor(db, now.editor_id), options.dtype) if now.editor_id else None
    in_effect = sorted(set(range(1, len(facts) + 1)) - {fact.number for fact in gone})
    if not in_effect:
        raise UsageError(
            f"none of the {len(facts):,} facts of #{entry.number} is in effect any more",
            remedy="malmen log tells what reverted or superseded them; malmen eval FILE scores a fact file",
        )
    numbers = [in_effect[i] for i in choose(len(in_effect), options.n_edits, options.seed)]
    language_model = load_base(ledger, model, list(layers.values()), options.device, settings)
    examination = _examination(language_model, [facts[number - 1] for number in numbers], options)
    before = examination.ask(partial(options.progress, "asking the base"))
    asked, others_before = _edit_success(language_model, others, options.batch_tokens)
    records = model.manifest.tensors
    weights: dict[str, Tensor] = {
        layers[name].name: stored_tensor(ledger.objects, records[name], digest) for name, digest in state.items()
    }
    language_model.overlay(weights)
    report = examination.report(before, examination.ask(partial(options.progress, "asking the checkpoint")))
    _, others_after = _edit_success(language_model, others, options.batch_tokens)
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
        warnings=[],
    )


def choose(available: int, wanted: int | None, seed: int) -> list[int]:
    """Indices of a sample, drawn by `seed` alone, in ascending order; all of them where no fewer are wanted."""
    if wanted is None or wanted >= available:
        return list(range(available))
    return sorted(random.Random(seed).sample(range(available), wanted))


def _editor(db: sqlite3.Connection, model: ModelRecord, named: str | None) -> EditorRecord:
    """The editor of a file's evaluation: any of the model's, whichever is in force, since nothing is mixed."""
    return choose_editor(db, model, named, active_now(db, model) if named is None else ActiveSet({}, None))


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
    entries = store.fold(db, model.id)
    active = active_facts(entries)
    edits = {fact.edit_digest for fact in active.values()}
    # A rebase brought nothing that could be reverted in its name: there a prompt that has another target tells.
    kept = remaining(entries)[entry.id] if entry.kind == "apply" else {f.digest for f in facts if f.prompt in active}
    return [
        NotInEffect(number, fact, "superseded" if fact.digest in kept else "reverted")
        for number, fact in enumerate(facts, 1)
        if fact.edit_digest not in edits
    ]


def _edit_success(model: LanguageModel, facts: Iterable[Fact], batch_tokens: int) -> tuple[int, float | None]:
    """How many of the facts could be asked, and their ES."""
    texts = [text for fact in facts if (text := model.tokenizing.fits(fact.prompt, fact.target)) is not None]
    return len(texts), mean(agreement(model.predictions(texts, batch_tokens=batch_tokens), texts))


def _examination(model: LanguageModel, facts: Sequence[Fact], options: EvaluationOptions) -> Examination:
    return Examination(
        model,
        facts,
        generate=options.generate,
        max_new_tokens=options.max_new_tokens,
        batch_tokens=options.batch_tokens,
    )
