"""Comparing editors over numbers of facts: the model is loaded once, the base is asked once, every edit is in memory.

The facts are those of `malmen eval` with the largest number of facts and the same seed; each smaller number takes a
part of the next larger one's. So the base's answers serve them all, and differences between points are not differences
between facts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from malmen_cli import __version__
from malmen_cli.checkpoint.digests import digest_bytes
from malmen_cli.errors import NumericalFailure, UsageError, as_sentence
from malmen_cli.evaluation.comparison import Comparison, Contender, Point, Question
from malmen_cli.facts import FactSet
from malmen_cli.ledger import Ledger, ModelRecord
from malmen_cli.ledger.entry_rows import now
from malmen_cli.methods.registry import method_of
from malmen_cli.operations.active import ActiveSet, Chosen, active_now, choose_editor, largest_set
from malmen_cli.operations.comparison_bench import ComparisonBench, Entrant
from malmen_cli.operations.editors import settings_of
from malmen_cli.operations.environment import environment
from malmen_cli.operations.evaluated import EvaluationOptions
from malmen_cli.operations.evaluation import lessons_of
from malmen_cli.operations.layers import layers_of
from malmen_cli.operations.method_editors import MethodRequest, editor_by_method, find_by_method
from malmen_cli.operations.report_folder import ReportFolder


def compare(
    ledger: Ledger,
    model: ModelRecord,
    facts: FactSet,
    editors: Sequence[Chosen],
    sizes: Sequence[int],
    seeds: Sequence[int],
    options: EvaluationOptions,
    folder: ReportFolder,
    *,
    command: str = "",
    notes: Sequence[str] = (),
    made: Callable[[Point], None] = lambda point: None,
) -> Comparison:
    """Every editor at every number of facts, for every seed; points that the folder has are not made again.

    Where an edit has no finite outcome there is no point, and a note says so.

    Args:
        sizes: numbers of facts; more than there are stand for all, and none for what the editors were trained for.
        folder: holds the points made so far, after each.
        made: is called with every point that was made.

    Raises:
        UsageError: no fact fits, or the folder holds another question's report. WrongBase: the checkpoint is not as the
            ledger says. Locked: another process writes to it.
    """
    entrants = _entrants(editors, options)
    free, told = _free(ledger, facts, entrants, options)
    trained_for = [size for entrant in entrants if (size := largest_set(entrant.record)) is not None]
    within = sorted({min(size, len(free)) for size in sizes or [min(trained_for, default=len(free))]})
    question = Question(
        model=model.name,
        base=model.base_digest,
        source=facts.source,
        facts=facts.digest,
        available=len(facts),
        free=len(free),
        ends_by_default=model.architecture.get("task") == "sequence-to-sequence",
        sizes=within,
        seeds=sorted(set(seeds)),
        contenders=[entrant.contender for entrant in entrants],
        options={
            "generate": options.generate,
            "max_new_tokens": options.max_new_tokens,
            "dtype": options.dtype,
            "batch_tokens": options.batch_tokens,
            "overlap": options.overlap,
            "drift": None
            if options.drift is None
            else f"{options.drift[1]}, {digest_bytes(options.drift[0].encode())}",
            "malmen": __version__,
        },
    )
    about = {"created_at": now(), "command": command, **environment(options.device)}
    made_with = [
        f"{entrant.contender.label}: {warning}"
        for editor, entrant in zip(editors, entrants, strict=True)
        for warning in editor.warnings
    ]
    comparison = folder.resumed(question) or Comparison(question=question, about=about)
    comparison = _noting(
        comparison,
        [
            *notes,
            *told,
            *made_with,
            *_size_notes(sizes, len(free)),
            *_draw_notes(question),
            *_asking_notes(question),
            *_elsewhere_notes(comparison, about),
        ],
    )
    folder.save(comparison)
    missing = comparison.missing
    for together in _by_run(entrants):
        labels = {entrant.contender.label for entrant in together}
        wanted = [key for key in missing if key[0] in labels]
        if not wanted:
            continue
        bench = ComparisonBench(ledger, model, facts, free, together, question, options)
        comparison = _noting(comparison, bench.notes(wanted))
        for key in wanted:
            try:
                point = bench.point(*key)
            except (NumericalFailure, UsageError) as error:
                # A method that breaks down at some number of facts, or meets one that it cannot edit, leaves a gap
                # there, and the others go on.
                why = f"{_no_point(key)}: {error.message}."
                if error.remedy:
                    why += f" {as_sentence(error.remedy)}"
                failed = [*(x for x in comparison.failed if x != key), key]
                comparison = _noting(comparison.model_copy(update={"failed": failed}), [why])
                folder.save(comparison)
                continue
            more = {"points": [*comparison.points, point], "failed": [x for x in comparison.failed if x != key]}
            comparison = _noting(comparison.model_copy(update=more), [])
            folder.save(comparison)
            made(point)
        del bench  # before the next one loads its model
    return comparison


def _noting(comparison: Comparison, notes: Iterable[str]) -> Comparison:
    """With these notes too, each but once, and without those of points that a later run has made after all."""
    made = tuple(f"{_no_point(point.key)}: " for point in comparison.points)
    left = [note for note in dict.fromkeys([*comparison.notes, *notes]) if not note.startswith(made)]
    return comparison.model_copy(update={"notes": left})


def _no_point(key: tuple[str, int, int]) -> str:
    """How a note on a point that could not be made begins."""
    label, size, seed = key
    return f"No point of {label} at {size:,} facts (seed {seed})"


def contenders(
    ledger: Ledger,
    model: ModelRecord,
    facts: FactSet,
    editors: Sequence[str],
    methods: Sequence[MethodRequest],
    options: EvaluationOptions,
) -> list[Chosen]:
    """The editors that are named, and those of the methods: the newest of each, or one made in memory.

    A method that is made from facts gets all of the file's, whichever are drawn of them: no point depends on the
    others. With nothing named it is the editor in force, else the newest that was trained.

    Raises:
        UsageError: there is no such editor, or none can be made.
    """
    with ledger.read() as db:
        none = ActiveSet({}, None)  # whatever is in force, since nothing is mixed
        found = [Chosen(choose_editor(db, model, name, none)) for name in editors]
        if not editors and not methods:
            return [Chosen(choose_editor(db, model, None, active_now(db, model)))]
    for request in methods:
        if not request.method.trained and find_by_method(ledger, model, request, beside=True) is None:
            request = request.in_dtype(options.dtype)
        chosen = editor_by_method(
            ledger,
            model,
            request,
            facts.facts,
            beside=True,
            device=options.device,
            batch_tokens=options.batch_tokens,
            progress=options.progress,
        )
        if chosen.made is not None:  # its model is let go of: the points load their own
            chosen = replace(chosen, made=replace(chosen.made, language_model=None))
        found.append(chosen)
    return found


def _entrants(editors: Sequence[Chosen], options: EvaluationOptions) -> list[Entrant]:
    """The editors as contenders, under labels that tell them apart.

    Raises:
        UsageError: an editor is named twice.
    """
    records = [editor.record for editor in editors]
    if len({record.id for record in records}) < len(records):
        raise UsageError("an editor is named twice", remedy="name each once")
    methods = [method_of(record.config).name for record in records]
    found = []
    for editor, method in zip(editors, methods, strict=True):
        record, made = editor.record, editor.made
        layers = layers_of(record.config)
        about = f"edits {' to '.join(dict.fromkeys((layers[0].name, layers[-1].name)))}"
        if made is not None:
            about += f". {made.note}, in {made.seconds:.1f} s"
        contender = Contender(
            label=method if methods.count(method) == 1 else f"{method} {record.id[:10]}",
            method=method,
            editor=record.id,
            settings=dict(record.config.get("config", {})),
            about=about,
        )
        files = None if made is None else made.files
        found.append(Entrant(contender, record, settings_of(record, options.dtype), layers, files))
    return found


def _free(
    ledger: Ledger, facts: FactSet, entrants: Sequence[Entrant], options: EvaluationOptions
) -> tuple[list[int], list[str]]:
    """Places of the facts that may be drawn, the same ones for all, and what to say of those that may not.

    Raises:
        UsageError: every fact is one that an editor was trained on.
    """
    seen = [(entrant.contender.label, lessons_of(ledger, entrant.record)) for entrant in entrants]
    own = [
        {place for place, fact in enumerate(facts) if lessons is not None and lessons.knows_prompt(fact)}
        for _, lessons in seen
    ]
    known = set[int]().union(*own) if options.overlap == "leave-out" else set[int]()
    free = [place for place in range(len(facts)) if place not in known]
    if not free:
        raise UsageError(
            f"an editor was trained on each of the {len(facts):,} facts: their scores would say nothing",
            remedy="evaluate facts that none has seen, or give --overlap keep to score them all the same",
        )
    told = []
    for (label, lessons), same in zip(seen, own, strict=True):
        if lessons is None:
            told.append(f"{label} does not say what it was trained on: overlap with its training is not known.")
            continue
        fate = "left out for all" if options.overlap == "leave-out" else "asked all the same"
        if same:
            told.append(f"{len(same):,} of {len(facts):,} facts have a prompt of the training of {label}: {fate}.")
        shared = sum(lessons.knows_subject(facts.facts[place]) for place in free if place not in same)
        if shared:
            told.append(f"{shared:,} other facts that may be drawn share a subject with the training of {label}.")
        if unrelated := lessons.known_unrelated(facts.facts[place] for place in free):
            where = "unrelated prompts of facts that may be drawn"
            told.append(f"{unrelated:,} {where} are of the training of {label}, and flatter LS.")
    return free, told


def _by_run(entrants: Sequence[Entrant]) -> Iterator[list[Entrant]]:
    together: dict[tuple[Any, ...], list[Entrant]] = {}
    for entrant in entrants:
        together.setdefault(entrant.run, []).append(entrant)
    yield from together.values()


def _draw_notes(question: Question) -> list[str]:
    """Where several seeds were asked for, and there is nothing to draw."""
    return [
        f"{size:,} facts are all that there are to draw from: one draw, with one seed."
        for size in question.sizes
        if len(question.seeds_of(size)) < len(question.seeds)
    ]


def _asking_notes(question: Question) -> list[str]:
    if question.asks_the_same:
        return []
    told = [contender.label for contender in question.contenders if question.asks_for_ends(contender)]
    which = "Chat templates differ"
    if told:
        which = f"The end of the answer is one more token to say for {' and '.join(told)}"
    return [f"{which}: teacher-forced scores, and harmonic means with them, are not of the same question for all."]


def _elsewhere_notes(comparison: Comparison, about: Mapping[str, Any]) -> list[str]:
    """Where a report that was begun with another device, other threads or versions gets more points."""
    names = ("device", "threads", "versions")
    if not comparison.untried or all(comparison.about.get(name) == about[name] for name in names):
        return []
    threads, versions = about["threads"], about["versions"]
    made_with = f"{threads} thread{'' if threads == 1 else 's'}, torch {versions['torch']}"
    return [
        f"Points from {about['created_at']} on were made on {about['device']} ({made_with}), unlike the first ones."
    ]


def _size_notes(sizes: Sequence[int], available: int) -> list[str]:
    return [
        f"{size:,} facts were asked for, and there are {available:,}: all of them are taken."
        for size in sizes
        if size > available
    ]
