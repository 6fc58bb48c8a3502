"""The re-stated official loop that benchmarks compare with: its shifts, losses and gradients are those of malmen.

Both start from one editor with the paper's settings. The moments are handed over afterwards, since the official loop
updates them as it goes. Its value gradients are of a batch's mean loss, ours of each text's own: with one label per
text they differ by the number of texts, which the moments take in, and nothing else of the method sees their size.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from meta_training import Setup, set_up, training_config
from tiny_models import Family
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from official_loop import OfficialLoop, OfficialNetwork, Settings

from malmen_cli.editing.normal_equation import Form
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.training.rows import TrainingRow

PAPER = {
    "normalise": "shape",
    "step_size": "linear",
    "initial_step_size": 1e-2,
    "initial_ridge": 0.5,
    "preserved_keys": 0,
    "rank": 3,
}
EXACT = 2e-4  # relative; both compute the editor in float32, and the official loop its solve too


@dataclass(frozen=True)
class Both:
    """malmen's step and the official loop, each with a float64 model of its own and the same editor."""

    setup: Setup
    loop: OfficialLoop

    def hand_over_moments(self, texts_per_batch: int = 1) -> None:
        """Give malmen's editor the official moments, of value gradients that are so many times as large."""
        for layer, shape in enumerate(self.setup.model.shapes):
            moments = self.loop.networks[str((shape.d_in, shape.d_out))].moments
            size = torch.ones(shape.d_in + shape.d_out, dtype=torch.float64)
            size[shape.d_in :] = texts_per_batch
            normalizer = self.setup.editor.normalizers[layer]
            normalizer.mean, normalizer.variance = moments.mean * size, (moments.std * size).square()
        self.setup.editor.freeze_normalizers()

    def one_label_rows(self) -> tuple[list[int], list[TrainingRow]]:
        """The rows whose target is one token, and which they are."""
        chosen = [i for i, row in enumerate(self.setup.split.train) if row.edit.supervised == 1]
        return chosen, [self.setup.split.train[i] for i in chosen]


def both(folder: Path, *, family: Family = "gpt2", facts: int = 24, batch: int = 32) -> Both:
    config = training_config(editor=PAPER, edit=0, locality=1, saturation=0, reduction="batch", batch_tokens=100_000)
    setup = set_up(folder, config, family=family, facts=facts)
    with torch.no_grad():  # what the layers of one shape do not share must differ, else a mix-up would not show
        setup.editor.raw_step_size += 1e-3 * torch.arange(len(setup.model.layers))
        setup.editor.log_ridge += 0.1 * torch.arange(len(setup.model.layers))
    settings = Settings(rank=3, batch=batch, editor_rows=7)
    names = [layer.name for layer in setup.model.layers]
    (folder / "cache").mkdir()
    model = LanguageModel(folder / "model", dtype=torch.float64).model
    loop = OfficialLoop(model, names, folder / "cache", settings)
    for shape, network in loop.networks.items():
        assert isinstance(network, OfficialNetwork)
        ours = setup.editor.networks[shape.strip("()").replace(", ", "x")]
        with torch.no_grad():
            for to, block in zip(network.blocks, ours.blocks, strict=True):
                for name in ("A", "B", "bias"):
                    getattr(to, name).copy_(getattr(block, name))
                to.scale.weight.copy_(block.scale)
                to.shift.weight.copy_(block.shift)
            network.step_size.weight.copy_(setup.editor.raw_step_size[:, None])
            network.log_ridge.weight.copy_(setup.editor.log_ridge[:, None])
    return Both(setup, loop)


def distance(found: Tensor, expected: Tensor) -> float:
    assert float(expected.norm()) > 0, "nothing is compared"
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("form", ["kernel", "primal"])
def test_the_same_rows_give_the_same_shift(tmp_path: Path, family: Family, form: Form) -> None:
    pair = both(tmp_path, family=family, facts=60, batch=7)
    editor = pair.setup.editor
    rows = pair.one_label_rows()[1] if form == "kernel" else pair.setup.split.train
    pair.loop.capture([row.edit for row in rows])
    pair.hand_over_moments()
    for layer, shift in enumerate(pair.loop.param_shifts()):
        keys, grads = pair.loop.rows(layer)
        assert len(keys) == sum(row.edit.supervised for row in rows)
        equation = editor.equation(layer, form).update(keys, editor.value_diffs(layer, keys, grads).detach())
        assert distance(shift, editor.solve(layer, equation).param_shift) <= EXACT


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_step_has_the_same_losses_and_gradients(tmp_path: Path, family: Family) -> None:
    pair = both(tmp_path, family=family)
    editor = pair.setup.editor
    texts, rows = pair.one_label_rows()
    theirs = pair.loop.gradients(
        [row.edit for row in rows], [row.equivalent[0] for row in rows], [row.unrelated[0] for row in rows]
    )
    pair.hand_over_moments(texts_per_batch=len(rows))
    ours = pair.setup.step(texts, seed=0)
    assert sum(theirs.equivalent) == pytest.approx(ours.equivalent, rel=1e-5)
    assert sum(theirs.locality) == pytest.approx(ours.locality, rel=1e-4)
    for shape, network in pair.loop.networks.items():
        assert isinstance(network, OfficialNetwork)
        blocks = editor.networks[shape.strip("()").replace(", ", "x")].blocks
        for block, expected in zip(network.blocks, blocks, strict=True):
            for name in ("A", "B", "bias"):
                assert distance(getattr(block, name).grad, getattr(expected, name).grad) <= EXACT, name
            assert distance(block.scale.weight.grad, expected.scale.grad) <= EXACT
            assert distance(block.shift.weight.grad, expected.shift.grad) <= EXACT
        assert editor.raw_step_size.grad is not None
        assert editor.log_ridge.grad is not None
        assert distance(network.step_size.weight.grad[:, 0], editor.raw_step_size.grad) <= EXACT
        assert distance(network.log_ridge.weight.grad[:, 0], editor.log_ridge.grad) <= EXACT


def test_a_step_leaves_the_model_and_an_edit_adds_the_shifts(tmp_path: Path) -> None:
    pair = both(tmp_path, batch=7)
    _, rows = pair.one_label_rows()
    assert len(rows) > 7, "one batch only"
    edits = [row.edit for row in rows]
    before = [module.weight.detach().clone() for module in pair.loop.modules]
    pair.loop.train_step(edits, [row.equivalent[0] for row in rows], [row.unrelated[0] for row in rows])
    # Not bit for bit: weights to which a shift was added and from which it was taken off have lost bits.
    for module, weight in zip(pair.loop.modules, before, strict=True):
        assert distance(module.weight.detach(), weight) <= 1e-12
    shifts = pair.loop.edit(edits)
    for module, weight, shift in zip(pair.loop.modules, before, shifts, strict=True):
        assert distance(module.weight.detach() - weight, shift) <= 1e-6
