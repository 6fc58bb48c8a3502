"""Training an editor for a registered model and keeping it in the workspace."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from malmen_cli.checkpoint.digests import digest_json, short
from malmen_cli.checkpoint.durable import make_folders, require_writable
from malmen_cli.checkpoint.lock import checkpoint_lock
from malmen_cli.config import TrainingConfig
from malmen_cli.errors import NumericalFailure, UsageError, WrongBase
from malmen_cli.evaluation.overlap import TrainedOn
from malmen_cli.facts import FactSet
from malmen_cli.language_models.tokenizing import Tokenizing
from malmen_cli.ledger import EditorRecord, Ledger, ModelRecord, writing
from malmen_cli.ledger.training_runs import write_note
from malmen_cli.operations.editors import editor_files
from malmen_cli.operations.environment import environment
from malmen_cli.operations.keeping import chosen_layers, keep_editor
from malmen_cli.operations.layers import TensorLayer
from malmen_cli.operations.memory import job_for, needs_for, place_model
from malmen_cli.operations.models import load_base
from malmen_cli.training.loop import STATE, Trained, Watcher, require_space_for_run, require_state, train
from malmen_cli.training.rows import Split, split_rows

ENDLESS = 0.5
"""Share of targets of several tokens from which it is said that their end is not supervised."""

FEW = 100
"""Facts to train on below which it is said that they are few: of 30 an edit moved a layer by 14 times its own norm."""

FEW_HELD_OUT = 8
"""Held-out facts below which it is said how few choose the best step."""


@dataclass(frozen=True)
class TrainedEditor:
    """A new editor of the workspace, the run it came from and the rows it saw."""

    record: EditorRecord
    trained: Trained
    split: Split


def train_editor(
    ledger: Ledger,
    model: ModelRecord,
    facts: FactSet,
    config: TrainingConfig,
    *,
    command: str = "malmen train",
    layers: list[str] | None = None,
    device: str = "cpu",
    resume: bool = False,
    watcher: Watcher | None = None,
    lock_timeout: float = 0.0,
) -> TrainedEditor:
    """Meta-train an editor on a fact set at the model's base weights and add it to the ledger.

    Args:
        layers: globs over module paths; None edits the layers of the registration.
        resume: go on with the interrupted run of the same model, facts, layers and settings.

    Raises:
        UsageError: nothing to resume, or a run without an end. Locked: another process holds the checkpoint, or trains
        with the very same settings, for longer than `lock_timeout` seconds.
    """
    if config.steps is None and config.minutes is None:
        raise UsageError("a run needs an end", remedy="Give --steps or --minutes.")
    # Settled, and as the ledger says, while the base is read; training itself needs the checkpoint no more.
    with writing(ledger, model, command, lock_timeout):
        chosen = chosen_layers(ledger, model, layers)
        job = job_for("train", config, len(facts), config.batch_tokens)
        # Before they are tokenised nobody knows how many unrelated prompts there are: what may fit is not refused.
        trained_on = int(len(facts) * (1 - config.held_out))
        needs = needs_for(model, chosen, config, replace(job, facts=max(1, trained_on), preserved_keys=0))
        placement = place_model(ledger, model, chosen, device, config, job)
        language_model = load_base(ledger, model, chosen, placement, config, needs)
    split = split_rows(
        facts.facts, language_model.tokenizing, share=config.held_out, largest=config.max_held_out, seed=config.seed
    )
    if watcher is not None:
        for words in _notes(split, language_model.tokenizing, config):
            watcher.told(words)
    folder = run_folder(ledger, model, facts, config, chosen)
    if resume:
        require_state(language_model, config, folder)  # before anything is written into it
    require_writable(ledger.workspace.editors)
    require_space_for_run(language_model, split, config, folder)
    # Held against gc and against a second run of the same settings, which would write the same files.
    with _run_held(folder, command, lock_timeout):
        write_note(folder, model.name, facts.source, command)
        with _left_resumable_or_not_at_all(folder):
            trained = train(language_model, split, config, folder, resume=resume, watcher=watcher)
        files = editor_files(trained.editor, model, chosen, config, _log(facts, split, trained, placement.device))
        with ledger.hold(command):
            record = keep_editor(ledger, model, files)
        shutil.rmtree(folder, ignore_errors=True)
    return TrainedEditor(record, trained, split)


def _notes(split: Split, tokenizing: Tokenizing, config: TrainingConfig) -> Iterator[str]:
    """What to say before a training of these facts."""
    rows = len(split.train) + len(split.held_out)
    if out := split.left_out:
        why = tokenizing.why_not(out[0].prompt, out[0].target)
        reason = "" if why is None else f", for one {why.message}"
        yield f"{len(out):,} of {rows + len(out):,} facts are left out, which do not fit the model{reason}"
    if split.dropped:
        yield f"rephrases and unrelated prompts that do not fit the model are left out: {split.dropped:,}"
    if len(split.train) < FEW:
        yield f"{len(split.train):,} facts to train on are few: thousands are usual, and what this edits may be harmed"
    if words := _endless(split, tokenizing, config):
        yield words
    if lent := sum(row.lent for row in split.train):
        yield f"{lent:,} of {len(split.train):,} facts have no unrelated prompts: they are lent those of other facts"
    if len(split.held_out) > 2 * max(1, round(config.held_out * rows)):
        yield f"{len(split.held_out):,} of {rows:,} facts are held out: they are of few subjects, which are kept whole"
    if 0 < len(split.held_out) < FEW_HELD_OUT:
        count = f"{len(split.held_out)} held-out fact{'' if len(split.held_out) == 1 else 's'}"
        yield f"which step is the best is told by {count} alone: give more facts, or a larger held_out"
    taught = {tokens.input_ids for row in split.train for tokens in row.unrelated}
    if seen := sum(any(tokens.input_ids in taught for tokens in row.unrelated) for row in split.held_out):
        yield (
            f"{seen:,} of {len(split.held_out):,} held-out facts have unrelated prompts that are trained on too: "
            "their LS is better than that of new ones"
        )


def _endless(split: Split, tokenizing: Tokenizing, config: TrainingConfig) -> str | None:
    """What to say where answers are of several tokens and nobody has said whether their end is supervised."""
    several = sum(row.edit.supervised > 1 for row in split.train) / len(split.train)
    if config.end_of_text is not None or tokenizing.end_of_text or several < ENDLESS:
        return None
    return (
        f"{several:.0%} of the targets have several tokens, and where such an answer ends is not trained: free answers "
        "may run on behind it (--end-of-text; --no-end-of-text if that is meant)"
    )


@contextmanager
def _left_resumable_or_not_at_all(folder: Path) -> Iterator[None]:
    """Remove the folder of a run that ends before its first state is saved, or that can only end so again."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, NumericalFailure) or not (folder / STATE).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _run_held(folder: Path, command: str, timeout: float) -> Iterator[None]:
    """Make a run's folder and hold it.

    Whoever held it before removes it at the end of the same run, as often as there are such runs: made again each time.
    """
    with ExitStack() as held:
        while True:
            make_folders(folder)
            try:
                held.enter_context(checkpoint_lock(folder, command, timeout))
                break
            except WrongBase:
                continue  # removed between the making and the lock
        yield


def _log(facts: FactSet, split: Split, trained: Trained, device: str) -> dict[str, Any]:
    return {
        "facts": facts.digest,
        "fact_file": facts.source,
        "rows": len(split.train),
        "held_out": len(split.held_out),
        "dropped_prompts": split.dropped,
        "left_out": len(split.left_out),
        "best_step": trained.progress.best_step,
        "steps": trained.progress.step,
        "facts_seen": trained.progress.facts,
        "seconds": round(trained.progress.elapsed, 1),
        "history": trained.progress.history,
        **({} if trained.diverged is None else {"diverged": trained.diverged}),
        "saw": TrainedOn.of(split.trained).as_dict(),
        **environment(device),
    }


def run_folder(
    ledger: Ledger, model: ModelRecord, facts: FactSet, config: TrainingConfig, layers: list[TensorLayer]
) -> Path:
    """Where a run keeps its features and its resumable state: one folder per model, facts, layers and settings.

    How often a state is saved is none of them: it changes nothing of the run, which may go on with another.
    """
    settings = config.model_copy(update={"save_every": None}).model_dump(mode="json")
    identity = [model.base_digest, facts.digest, settings, [layer.name for layer in layers]]
    return ledger.workspace.training / short(digest_json(identity))
