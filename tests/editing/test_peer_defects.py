"""A regression test for each defect of the official MALMEN code (arXiv 2311.04661) that the mathematics could have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from solve_problems import counted, make, relative
from torch import Tensor

from malmen_cli.editing.editor import Editor, LayerShape
from malmen_cli.editing.normal_equation import NormalEquation, PreservedKeys
from malmen_cli.editing.normalizer import Normalizer

LAYER = LayerShape("mlp.c_proj", 12, 5)


def rows(n: int) -> tuple[Tensor, Tensor]:
    problem = make("random", n, LAYER.d_in, LAYER.d_out, seed=n)
    return problem.keys.float(), problem.value_diffs.float()


def editor() -> Editor:
    made = Editor([LAYER], rank=4, blocks=2)
    with torch.no_grad():
        for parameter in made.networks.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))
    made.normalizers[0].update(torch.cat(rows(200), dim=1))
    made.preserved[0] = PreservedKeys(rows(30)[0])
    made.freeze_normalizers()
    return made


@pytest.mark.parametrize("n", [1, 5, 7, 8, 13, 24, 25])
@pytest.mark.parametrize("batch", [1, 4, 8, 100])
def test_any_number_of_rows_in_any_batch_size(n: int, batch: int) -> None:
    """Theirs rounded the number of batches of keys up and of value gradients down: a ragged last batch failed."""
    made, (keys, grads) = editor(), rows(n)
    with torch.no_grad():
        streamed = made.equation(0)
        for u, g in zip(keys.split(batch), grads.split(batch), strict=True):
            streamed.update(u, made.value_diffs(0, u, g))
        whole = made.equation(0).update(keys, made.value_diffs(0, keys, grads))
    assert streamed.n == n
    assert relative(made.solve(0, streamed).param_shift, made.solve(0, whole).param_shift) <= 1e-5


class TestUndoing:
    """Theirs did `W += S` and `W -= S` in the model's dtype."""

    @staticmethod
    def after(cycles: int, base: Tensor, restore: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        weight = base.clone()
        for seed in range(cycles):
            problem = make("random", 6, 40, 30, seed=seed)
            shift = (1e-2 * problem.solve().param_shift).to(base.dtype)
            weight = restore(weight + shift, shift)
        return weight

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_adding_and_subtracting_drifts_and_a_kept_base_does_not(self, dtype: torch.dtype) -> None:
        base = (0.02 * torch.randn(40, 30, generator=torch.Generator().manual_seed(0))).to(dtype)
        assert float((self.after(100, base, lambda edited, shift: edited - shift) != base).float().mean()) > 0.2
        assert torch.equal(self.after(100, base, lambda edited, shift: base.clone()), base)

    def test_small_shifts_vanish_one_by_one_and_survive_in_one_sum_rounded_once(self) -> None:
        base = torch.full((40, 30), 1.0, dtype=torch.bfloat16)
        shifts = [torch.full((40, 30), 1e-3) for _ in range(100)]
        added = base.clone()
        for shift in shifts:
            added = added + shift.bfloat16()
        assert torch.equal(added, base)
        once = (base.float() + sum(shifts)).bfloat16()
        assert float((once.float() - 1.1).abs().max()) < 4e-3


def test_using_an_editor_never_changes_its_normaliser() -> None:
    """Theirs went on updating it in validation, so that the order of evaluation changed the edits."""
    made = editor()
    before = {name: tensor.clone() for name, tensor in made.tensors().items()}
    first = made.value_diffs(0, *rows(9)).detach()
    for mode in (True, False):
        made.train(mode)
        keys, grads = rows(50)
        made.solve(0, made.equation(0).update(keys, made.value_diffs(0, 100 * keys, grads).detach()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.tensors().items())
    assert torch.equal(made.value_diffs(0, *rows(9)).detach(), first)


def test_one_row_chunks_neither_inflate_the_variance_nor_make_it_nan() -> None:
    """Theirs merged the unbiased variance of each chunk, which one row does not have."""
    sample = torch.cat(rows(64), dim=1)
    for size in (1, 2, 63):
        normalizer = Normalizer(sample.shape[1])
        for chunk in sample.split(size):
            normalizer.update(chunk)
        assert relative(normalizer.variance, sample.double().var(0, correction=0)) <= 1e-12
    pairs = sample.double().unflatten(0, (-1, 2))
    theirs = pairs.var(1).mean(0) + pairs.mean(1).var(0, correction=0)
    assert float((theirs / sample.double().var(0, correction=0)).mean()) > 1.2


def test_a_facts_value_differences_do_not_depend_on_its_batch_mates() -> None:
    """Theirs normalised the loss by the batch."""
    made, (keys, grads) = editor(), rows(9)
    (other_keys, other_grads) = rows(40)
    with torch.no_grad():
        alone = made.value_diffs(0, keys[:1], grads[:1])
        for size in (0.0, 1.0, 1e3):
            beside = torch.cat([keys[:1], size * other_keys]), torch.cat([grads[:1], size * other_grads])
            assert relative(made.value_diffs(0, *beside)[:1], alone) <= 1e-6


def test_one_factorisation_for_the_edit_and_its_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs solved the same matrix twice by LU."""
    sizes: list[int] = []
    monkeypatch.setattr(torch.linalg, "cholesky_ex", counted(torch.linalg.cholesky_ex, sizes))
    for name in ("solve", "inv", "lu_factor", "eigh"):
        monkeypatch.setattr(torch.linalg, name, counted(getattr(torch.linalg, name), sizes))
    made, (keys, grads) = editor(), rows(50)
    solution = made.solve(0, made.equation(0).update(keys, made.value_diffs(0, keys, grads).detach()))
    for seed in range(3):
        solution.gradients(keys, make("random", LAYER.d_in, 1, LAYER.d_out, seed=seed).value_diffs)
    assert sizes == [LAYER.d_in]


def test_a_set_of_facts_is_streamed_not_concatenated() -> None:
    equation = NormalEquation(LAYER.d_in, LAYER.d_out)
    for n in range(100, 130):
        equation.update(*rows(n))
    equation.solve(ridge=1.0)
    numbers = [x for value in vars(equation).values() for x in (value if isinstance(value, list) else [value])]
    assert sum(x.numel() for x in numbers if isinstance(x, Tensor)) == LAYER.d_in * (LAYER.d_in + LAYER.d_out)
