"""The two sides of `speed.py`: malmen and the official loop on the same checkpoint, facts and settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from official_loop import OfficialLoop, Settings
from torch import Tensor, nn

from malmen_cli.config import TrainingConfig
from malmen_cli.editing.normal_equation import PreservedKeys
from malmen_cli.facts import Fact
from malmen_cli.language_models.arithmetic import Passes, arithmetic_of, passes
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.texts import Tokens
from malmen_cli.ledger.objects import ObjectStore
from malmen_cli.ledger.records import RowSlice
from malmen_cli.operations.rows import RowReader, capture_rows
from malmen_cli.operations.solving import CHUNK
from malmen_cli.training.features import Features
from malmen_cli.training.rows import TrainingRow
from malmen_cli.training.start import untrained_editor
from malmen_cli.training.step import MetaStep

WARM = 32
"""Facts of the step that each side takes before anything is timed."""

KEPT_STATES = 8 << 30
"""Bytes of hidden states that malmen keeps at most: as many as there are."""


class Malmen:
    """Meta-training and applying as malmen does them, without ledger and validation.

    Args:
        model: at its base weights; other sides may use it too. rows: training rows. work: a folder for features.
    """

    def __init__(self, model: LanguageModel, config: TrainingConfig, rows: Sequence[TrainingRow], work: Path) -> None:
        self.model = model
        self.config, self._work, self._objects = config, work, ObjectStore(work)
        self.capture(rows[:WARM])
        self.editor = untrained_editor(self.model, self.features, config.editor, config.seed)
        if config.editor.preserved_keys:
            self.editor.preserved = [_preserved(keys, config) for keys in self.features.unrelated_keys]
        self.optimizer = torch.optim.Adam(self.editor.parameters(), config.learning_rate)
        self._arithmetic = arithmetic_of(model.model, model.layers)
        self.step(rows[:WARM])

    def capture(self, rows: Sequence[TrainingRow]) -> None:
        """What the first epoch does besides its steps."""
        asked = bool(self.config.edit)
        self.features = Features(
            self._work, self.model, rows, batch_tokens=self.config.batch_tokens, kept_states=KEPT_STATES, asked=asked
        )

    def step(self, rows: Sequence[TrainingRow]) -> None:
        """One training step over rows whose features are there."""
        self.optimizer.zero_grad(set_to_none=True)
        MetaStep(self.model, self.editor, self.features, rows, self.config)(range(len(rows)), seed=0)
        self._update()

    def capture_flops(self, rows: Sequence[TrainingRow]) -> float:
        """Of `capture`'s passes, two to a multiply-add."""
        model = self._arithmetic
        edits = self._work_of([row.edit for row in rows])
        unrelated = self._work_of([text for row in rows for text in row.unrelated])
        others = self._work_of([text for row in rows for text in row.equivalent if text is not row.edit])
        below, above = model.below["answer"], model.above["answer"]
        return 2.0 * (
            edits.answer * (below + 2 * above)
            + 2 * edits.labels * model.head
            + unrelated.answer * (below + above)
            + others.answer * below
        )

    def step_flops(self, rows: Sequence[TrainingRow]) -> float:
        """Of a step's passes above the first edited layer, with the gradients of the edited weights."""
        edited = sum(shape.d_in * shape.d_out for shape in self.model.shapes)
        texts = [row.equivalent[0] for row in rows] + [row.unrelated[0] for row in rows]
        texts += [row.edit for row in rows] if self.config.edit else []
        work = self._work_of(texts)
        return 2.0 * (
            work.answer * (2 * self._arithmetic.above["answer"] + edited) + 2 * work.labels * self._arithmetic.head
        )

    def apply_flops(self, facts: Sequence[Fact]) -> float:
        """Of the capture's passes."""
        model, tokens = self._arithmetic, self.model.tokenizing
        work = self._work_of([tokens(fact.prompt, fact.target) for fact in facts])
        forward = model.below["answer"] + 2 * model.above["answer"]
        return 2.0 * (work.answer * forward + 2 * work.labels * model.head)

    def _work_of(self, texts: Sequence[Tokens]) -> Passes:
        return passes(self.model.tokenizing.batches(texts, self.config.batch_tokens))

    def _update(self) -> None:
        nn.utils.clip_grad_norm_(self.editor.parameters(), self.config.clip)
        self.optimizer.step()

    def apply(self, facts: Sequence[Fact]) -> list[Tensor]:
        """W0 + S of every layer in the model's dtype: capture and solve, and nothing of the ledger."""
        edited = []
        captured = capture_rows(self.model, self.editor, facts, batch_tokens=None)
        read = RowReader(self._objects, captured)
        for layer, (rows, base) in enumerate(zip(captured, self.model.weights(), strict=True)):
            spans = sorted(rows.spans, key=lambda span: span.edit_digest)
            slices = [RowSlice(rows.data.digest, span.start, span.count) for span in spans]
            equation = self.editor.equation(layer)
            for start in range(0, len(slices), CHUNK):
                equation.update(*(x.to(base.device) for x in read.chunk(slices[start : start + CHUNK])))
            read.close_layer()
            shift = self.editor.solve(layer, equation).param_shift
            edited.append((base.float() + shift.float()).to(base.dtype))
        return edited


class Official:
    """The same with the official loop, on a model as transformers loads it.

    Args:
        folder: the checkpoint. model: malmen's, for its tokens and the names of its edited layers.
        cache: a folder for its files of rows. fused: give it malmen's fused activation too.
        unused_loss: see `Settings`.
    """

    def __init__(
        self,
        folder: Path,
        model: LanguageModel,
        cache: Path,
        rows: Sequence[TrainingRow],
        *,
        rank: int,
        fused: bool = False,
        unused_loss: bool = False,
    ) -> None:
        from transformers import AutoModelForCausalLM

        # GPT-J in bfloat16, as the official settings have it; smaller models in float32.
        dtype = model.dtype if model.model_type == "gptj" else torch.float32
        plain: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(model.device)
        if fused:
            _fuse(plain)
        self._tokenizing = model.tokenizing
        self.loop = OfficialLoop(
            plain, [layer.name for layer in model.layers], cache, Settings(rank=rank, unused_loss=unused_loss)
        )
        self.step(rows[:WARM])

    def step(self, rows: Sequence[TrainingRow]) -> None:
        """One training step, in whatever epoch."""
        edits: list[Tokens] = [row.edit for row in rows]
        self.loop.train_step(edits, [row.equivalent[0] for row in rows], [row.unrelated[0] for row in rows])

    def apply(self, facts: Sequence[Fact]) -> None:
        """Edit the model."""
        self._shifts = self.loop.edit([self._tokenizing(fact.prompt, fact.target) for fact in facts])

    def restore(self) -> None:
        """Take the last edit off again."""
        self.loop.add(self._shifts, sign=-1)


def _preserved(keys: Tensor, config: TrainingConfig) -> PreservedKeys:
    """As many keys as a long training keeps, of the same size as these: what a solve costs does not depend on them.

    As compressed as they would be, without waiting for it.
    """
    width, count = keys.shape[1], config.editor.preserved_keys
    rows = torch.randn(min(width, count), width, generator=torch.Generator().manual_seed(0))
    return PreservedKeys(rows * keys.float().square().mean().sqrt() * (count / len(rows)) ** 0.5, count)


def _fuse(model: nn.Module) -> None:
    from transformers.activations import NewGELUActivation

    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, nn.GELU(approximate="tanh"))
