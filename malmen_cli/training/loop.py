"""The meta-training loop (arXiv 2311.04661, algorithm 1, with the choices of DESIGN section 3)."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from malmen_cli.checkpoint.durable import Need, require_space
from malmen_cli.config import TrainingConfig
from malmen_cli.editing.editor import Editor
from malmen_cli.errors import NumericalFailure, UnsafeFile, UsageError
from malmen_cli.language_models.host_memory import give_back_freed
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.methods.registry import METHODS
from malmen_cli.training.features import Features, table_sizes
from malmen_cli.training.rows import Split
from malmen_cli.training.start import editor_size, require_weights, untrained_editor
from malmen_cli.training.state import Progress, load_state, save_state
from malmen_cli.training.step import Losses, MetaStep
from malmen_cli.training.validation import Validation, expecting_the_base, validate, validation_sizes

VALIDATIONS = 5
"""Validations of a run whose settings do not say how often."""

SAVED_EVERY = 600.0
"""Seconds after which a run is saved in any case: what a killed one loses at most, but for a step and a validation."""


@dataclass(frozen=True)
class StepReport:
    """What a step did, for display: `done` is the share of the run behind us, rate in facts per second."""

    step: int
    facts: int
    losses: Losses
    done: float
    rate: float
    eta_seconds: float


@dataclass(frozen=True)
class Watcher:
    """Callbacks of a display; none of them changes the run."""

    told: Callable[[str], None] = lambda words: None
    capturing: Callable[[int, int], None] = lambda done, total: None
    step: Callable[[StepReport], None] = lambda report: None
    validated: Callable[[int, Validation, bool], None] = lambda step, validation, best: None


@dataclass(frozen=True)
class Trained:
    """The best editor of a run (frozen), with the progress that led to it.

    Attributes:
        diverged: where and how the run ended before its end, None for most.
    """

    editor: Editor
    progress: Progress
    diverged: str | None = None


GIB = 1 << 30

STATE = "state.safetensors"
"""The resumable state's file in a run's folder."""


def train(
    model: LanguageModel,
    split: Split,
    config: TrainingConfig,
    folder: Path,
    *,
    resume: bool = False,
    watcher: Watcher | None = None,
) -> Trained:
    """Meta-train an editor for a model at its base weights.

    Args:
        split: training and held-out rows. folder: where features and the resumable state live.
        resume: go on from the state in `folder`; on one device and thread count the result is bit for bit that of a
            run never interrupted (with `config.steps`; with `config.minutes` the clock has its say).

    A run that diverges ends there, with the best editor so far.

    Raises:
        UsageError: nothing to resume. NumericalFailure: the run diverged before its first validation.
    """
    state = folder / STATE
    if resume:
        _require_there(state)
    run = _Run(model, split, config, folder, watcher or Watcher(), reuse=resume)
    if resume:
        run.resume(state)
    saved, saved_at = run.progress.step if resume else None, time.monotonic()
    try:
        while not run.finished():
            run.step()
            validating = run.due(config.validate_every) or run.finished()
            if validating:
                run.validate()
            due = run.due(config.save_every) if config.save_every else validating
            if not run.finished() and (due or time.monotonic() > saved_at + SAVED_EVERY):
                run.save(state)
                saved, saved_at = run.progress.step, time.monotonic()
    except NumericalFailure as error:  # which it would run into again
        where = f"the training diverged after step {run.progress.step:,} ({error.message})"
        if not run.best:
            raise NumericalFailure(where, remedy="Lower --learning-rate or --scalar-learning-rate.") from error
        return run.result(diverged=where)
    except BaseException:
        if saved is not None:
            run.watcher.told(f"step {saved:,} is kept: the same command with --resume goes on from there")
        raise
    return run.result()


def require_state(model: LanguageModel, config: TrainingConfig, folder: Path) -> None:
    """Read the state of an interrupted run once and let go of it: what cannot be resumed is refused before the capture.

    Raises:
        UsageError: there is none. UnsafeFile: it is not a state of such a run.
    """
    _require_there(folder / STATE)
    editor = kind_of(config)(
        model.shapes, rank=config.editor.rank, blocks=config.editor.blocks, step_size=config.editor.step_size
    )
    load_state(folder / STATE, editor, _optimizer(editor, config))


def require_space_for_run(model: LanguageModel, split: Split, config: TrainingConfig, folder: Path) -> None:
    """Refuse a run whose features and states would not fit, before the first row is captured.

    What an interrupted run has left in `folder` makes room for this one's.

    Raises:
        MalmenError: with what is needed and what is free.
    """
    unrelated = [tokens for row in split.train for tokens in row.unrelated]
    *tables, states = table_sizes(model, split.train, **_kept_of_training(config))
    *more_tables, more_states = table_sizes(model, split.held_out, **_kept_of_held_out(config))
    rows, states = sum(tables) + sum(more_tables), states + more_states
    left = sum(path.stat().st_size for path in folder.glob("*/*") if path.is_file() and not path.is_symlink())
    keys = max(sum(tokens.rows(layer.stack) for tokens in unrelated) for layer in model.layers)
    editor = editor_size(model.shapes, config.editor, keys)
    state = 4 * editor  # editor, best editor, two moments; a new state is written beside the old one
    require_space(
        [
            Need(folder, (max(0, rows - left),), f"the rows of {len(split.train):,} facts"),
            Need(folder, (max(0, states - max(0, left - rows)),), "hidden states, which --kept-states bounds"),
            Need(folder, (2 * state,), "its resumable state"),
            Need(folder, (editor,), "the editor"),
        ]
    )


def _kept_of_training(config: TrainingConfig) -> dict[str, Any]:
    """What `Features` keeps of training rows."""
    return {**_kept(config), "references": True, "asked": bool(config.edit)}


def _kept_of_held_out(config: TrainingConfig) -> dict[str, Any]:
    """The same of held-out rows, which are scored against their targets."""
    return {**_kept(config), "references": False, "asked": True}


def _kept(config: TrainingConfig) -> dict[str, Any]:
    return {"everywhere": kind_of(config).everywhere, "kept_states": int(config.kept_states * GIB)}


def _require_there(state: Path) -> None:
    if state.is_symlink() or state.parent.is_symlink():
        raise UnsafeFile(f"{state} is reached through a link", remedy="remove it, and ask where it came from")
    if not state.is_file():
        raise UsageError(
            "there is no interrupted run of these settings",
            remedy="Leave out --resume to start one. Its state is saved with every validation (or --save-every) and "
            "every ten minutes, and found by the same facts, seed and settings, --steps and --minutes among them.",
        )


def kind_of(config: TrainingConfig) -> type[Editor]:
    """The class of the editors that these settings train."""
    found: type[Editor] = METHODS[config.method].load()
    return found


def _optimizer(editor: Editor, config: TrainingConfig) -> torch.optim.Adam:
    networks = list(editor.networks.parameters())
    return torch.optim.Adam(
        [
            {"params": networks, "lr": config.learning_rate},
            {"params": editor.scalars(), "lr": config.scalar_learning_rate},
        ]
    )


class _Run:
    def __init__(
        self,
        model: LanguageModel,
        split: Split,
        config: TrainingConfig,
        folder: Path,
        watcher: Watcher,
        *,
        reuse: bool,
    ) -> None:
        self.model, self.config, self.watcher = model, config, watcher
        self.rows, self.held_out = split.train, split.held_out
        require_weights(model, config.editor)
        captured = partial(Features, model=model, batch_tokens=config.batch_tokens, reuse=reuse)
        features = captured(folder / "train", rows=self.rows, progress=watcher.capturing, **_kept_of_training(config))
        held_out = captured(folder / "held-out", rows=self.held_out, **_kept_of_held_out(config))
        self.held_out = expecting_the_base(model, self.held_out, config.batch_tokens)
        self.editor = untrained_editor(model, features, config.editor, config.seed, kind_of(config))
        self.meta_step = MetaStep(model, self.editor, features, self.rows, config)
        self.validation_step = MetaStep(model, self.editor, held_out, self.held_out, config)
        self.sizes = validation_sizes(config.facts_per_step, len(self.held_out))
        self.optimizer = _optimizer(self.editor, config)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self._order: tuple[int, list[int]] = (-1, [])

    # The run's clock ---------------------------------------------------------------------------------------------

    def done(self) -> float:
        """Share of the run that is behind us, 0 to 1: of the steps, or of the minutes."""
        if self.config.steps is not None:
            return min(1.0, self.progress.step / self.config.steps)
        assert self.config.minutes is not None
        return min(1.0, self.progress.elapsed / (60 * self.config.minutes))

    def finished(self) -> bool:
        return self.done() >= 1

    def due(self, every: int | None) -> bool:
        """Whether something that happens every so many steps, or every `VALIDATIONS`th of the run, is due now."""
        if every is not None:
            return self.progress.step % every == 0
        if self.config.steps is not None:
            return self.progress.step % max(1, self.config.steps // VALIDATIONS) == 0
        return self.done() >= self.progress.validated + 1 / VALIDATIONS

    # What happens in it ------------------------------------------------------------------------------------------

    def step(self) -> None:
        began = time.monotonic()
        progress, config = self.progress, self.config
        texts = self._next_texts()
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.meta_step(texts, seed=hash((config.seed, progress.step)))
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.clip))
        if not math.isfinite(norm):
            raise NumericalFailure("the training gradient is not finite", remedy="Lower --learning-rate.")
        factor = self._rate_factor()
        for group, rate in zip(
            self.optimizer.param_groups, (config.learning_rate, config.scalar_learning_rate), strict=True
        ):
            group["lr"] = rate * factor
        self.optimizer.step()
        progress.step += 1
        progress.facts += len(texts)
        progress.elapsed += time.monotonic() - began
        done = self.done()
        self.watcher.step(
            StepReport(
                step=progress.step,
                facts=len(texts),
                losses=losses,
                done=done,
                rate=progress.facts / max(progress.elapsed, 1e-9),
                eta_seconds=progress.elapsed * (1 - done) / max(done, 1e-9),
            )
        )

    def _rate_factor(self) -> float:
        """The learning rates' share at this point: a linear rise, then a cosine down to 0 where `decay` is set."""
        done, warmup = self.done(), self.config.warmup
        if done < warmup:
            return max(done / warmup, 0.01)
        if not self.config.decay:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))

    def _next_texts(self) -> list[int]:
        """The next n rows of this epoch's shuffle; an epoch's last rows may be fewer.

        The density of log n grows with log n: every size from 1 up is drawn, but the single facts, whose gradients are
        the noisiest and which need the least training, less often than under a log-uniform draw.
        """
        progress, config = self.progress, self.config
        if progress.cursor >= len(self.rows):
            progress.epoch, progress.cursor = progress.epoch + 1, 0
        if self._order[0] != progress.epoch:
            order = list(range(len(self.rows)))
            random.Random(f"{config.seed} epoch {progress.epoch}").shuffle(order)
            self._order = (progress.epoch, order)
        size = config.facts_per_step
        if config.sample_size:
            draw = random.Random(f"{config.seed} step {progress.step}").random()
            size = min(size, int(math.exp(math.sqrt(draw) * math.log(size + 1))))
        texts = self._order[1][progress.cursor : progress.cursor + size]
        progress.cursor += len(texts)
        return texts

    def validate(self) -> None:
        began = time.monotonic()
        give_back_freed()  # a step's: the first validation makes eigenvectors of the preserved keys of every layer
        validation = validate(self.validation_step, self.held_out, self.sizes)
        best = validation.summary >= self.progress.best  # of equals the one that has learned longest
        if best:
            self.best = {name: tensor.clone() for name, tensor in self.editor.tensors().items()}
            self.progress.best, self.progress.best_step = validation.summary, self.progress.step
        record: dict[str, Any] = {
            "step": self.progress.step,
            "facts": self.progress.facts,
            "seconds": round(self.progress.elapsed, 1),
            "summary": validation.summary,
            "scores": validation.as_dict(),
        }
        self.progress.history.append(record)
        self.progress.elapsed += time.monotonic() - began
        self.progress.validated = self.done()  # its own time included: the next one is a fifth of the run away
        self.watcher.validated(self.progress.step, validation, best)

    def save(self, path: Path) -> None:
        save_state(path, self.editor, self.optimizer, self.best, self.progress)

    def resume(self, path: Path) -> None:
        self.best, self.progress = load_state(path, self.editor, self.optimizer)

    def result(self, diverged: str | None = None) -> Trained:
        self.editor.load_tensors(self.best)
        return Trained(self.editor, self.progress, diverged)
