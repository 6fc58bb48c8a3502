"""The editor: value differences are a fact's own, gradients are autograd's, tensors come back and are checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from solve_problems import FORMS, relative
from torch import Tensor

from malmen_cli.editing.editor import REFERENCE_ROWS, Editor, LayerShape
from malmen_cli.editing.normal_equation import Form, PreservedKeys
from malmen_cli.errors import NumericalFailure, UnsafeFile

LAYERS = (LayerShape("h.0", 7, 4), LayerShape("h.1", 5, 6), LayerShape("h.2", 7, 4))
ROWS = 19


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_of(layer: int, n: int = ROWS) -> tuple[Tensor, Tensor]:
    """Keys and value gradients as a model might give them: off centre, of different scales, one key never on."""
    keys = 2 * normal(n, LAYERS[layer].d_in, seed=layer) + 0.5
    keys[:, 2] = 0
    return keys, 0.1 * normal(n, LAYERS[layer].d_out, seed=9 + layer)


def trained(step_size: Literal["log", "linear"] = "log", *, preserved: bool = True, seed: int = 0) -> Editor:
    """An editor with every parameter away from its start, without preserved keys on the last layer."""
    editor = Editor(LAYERS, rank=3, blocks=2, step_size=step_size, seed=seed)
    with torch.no_grad():
        for i, parameter in enumerate(editor.parameters()):
            parameter.add_(0.2 * normal(*parameter.shape, seed=100 * seed + i))
        editor.raw_step_size.add_(0.3)
    for layer, normalizer in enumerate(editor.normalizers):
        normalizer.update(torch.cat(rows_of(layer), dim=1))
    if preserved:
        editor.preserved[:2] = [PreservedKeys(normal(m, LAYERS[i].d_in, seed=50 + i)) for i, m in enumerate((4, 30))]
    editor.freeze_normalizers()
    return editor


def written_out(editor: Editor, parameters: dict[str, Tensor], layer: int, keys: Tensor, grads: Tensor) -> Tensor:
    """d_i = -eta (u_i . u~_i) g~_i in the dtype of what is given, from the paper's formulas alone."""
    shape, normalizer = LAYERS[layer], editor.normalizers[layer]
    place = [other for other in range(len(LAYERS)) if LAYERS[other].d_in == shape.d_in].index(layer)
    std = normalizer.variance.sqrt()
    z = torch.cat([keys, grads], dim=1)
    z = torch.where(std > 0, (z - normalizer.mean) / torch.where(std > 0, std, 1), 0)
    for block in range(len(editor.networks[f"{shape.d_in}x{shape.d_out}"].blocks)):
        prefix = f"networks.{shape.d_in}x{shape.d_out}.blocks.{block}."
        a, b, bias, scale, shift = (parameters[prefix + name] for name in ("A", "B", "bias", "scale", "shift"))
        z = z + scale[place] * torch.relu(z @ a @ b + bias) + shift[place]
    eta = parameters["raw_step_size"][layer]
    eta = eta.exp() if editor.step_size_kind == "log" else eta
    return -eta * (keys * z[:, : shape.d_in]).sum(1, keepdim=True) * z[:, shape.d_in :]


def doubles(editor: Editor) -> dict[str, Tensor]:
    return {name: p.detach().double().requires_grad_() for name, p in editor.named_parameters()}


class TestValueDifferences:
    @pytest.mark.parametrize("step_size", ["log", "linear"])
    @pytest.mark.parametrize("layer", range(3))
    def test_they_are_the_formula(self, step_size: Literal["log", "linear"], layer: int) -> None:
        editor, (keys, grads) = trained(step_size), rows_of(layer)
        wanted = written_out(editor, doubles(editor), layer, keys.double(), grads.double()).detach()
        found = editor.value_diffs(layer, keys, grads).detach()
        assert found.dtype == torch.float32
        assert relative(found.double(), wanted) <= 1e-5

    @settings(deadline=None, derandomize=True, max_examples=30)
    @given(st.permutations(range(ROWS)), st.integers(1, ROWS), st.integers(0, 2))
    def test_a_facts_do_not_depend_on_the_facts_beside_it_the_chunk_or_the_order(
        self, order: list[int], chunk: int, layer: int
    ) -> None:
        editor, (keys, grads) = trained(), rows_of(layer)
        with torch.no_grad():
            together = editor.value_diffs(layer, keys, grads)
            parts = [editor.value_diffs(layer, keys[i], grads[i]) for i in torch.tensor(order).split(chunk)]
        gaps = (torch.cat(parts) - together[order]).norm(dim=1) / together[order].norm(dim=1)
        assert float(gaps.max()) <= 1e-5
        assert relative(torch.cat(parts), together[order]) <= 1e-6

    def test_bfloat16_rows_are_taken_as_they_are(self) -> None:
        editor, (keys, grads) = trained(), rows_of(0)
        keys, grads = keys.bfloat16(), grads.bfloat16()
        with torch.no_grad():
            found = editor.value_diffs(0, keys, grads)
            assert torch.equal(found, editor.value_diffs(0, keys.float(), grads.float()))
        shift = editor.solve(0, editor.equation(0).update(keys, found)).param_shift
        assert shift.dtype == torch.float64 and bool(torch.isfinite(shift).all())

    def test_a_linear_step_size_may_change_its_sign_and_a_log_one_cannot(self) -> None:
        for kind, sign in (("linear", -1), ("log", 1)):
            editor = Editor(LAYERS, rank=1, blocks=1, step_size=kind)  # type: ignore[arg-type]
            with torch.no_grad():
                editor.raw_step_size.fill_(-1e-3)
            assert float(editor.step_size(0).detach()) * sign > 0

    def test_dimensions_that_never_varied_give_0_whatever_comes_later(self) -> None:
        keys, grads = rows_of(0)
        keys[:, 2] = 123.0
        assert not trained().normalized(0, keys, grads)[:, 2].any()


class TestPreservedStrength:
    def test_it_is_stated_at_the_reference_rows_and_follows_a_power_of_their_number(self) -> None:
        editor = trained()
        c, p = math.exp(float(editor.log_strength[0].detach())), float(editor.strength_power[0].detach())
        assert editor.preserved_strength(0, REFERENCE_ROWS) == pytest.approx(c)
        assert editor.preserved_strength(0, 1000) == pytest.approx(c * (1000 / REFERENCE_ROWS) ** p)

    def test_without_preserved_keys_it_is_0(self) -> None:
        assert trained().preserved_strength(2, 100) == 0.0

    @pytest.mark.parametrize("scalar", ["log_ridge", "log_strength"])
    @pytest.mark.parametrize("value", [1e30, 800.0, math.nan])
    def test_out_of_range_scalars_are_refused_in_words_by_the_solve(self, scalar: str, value: float) -> None:
        editor, (keys, grads) = trained(), rows_of(0)
        with torch.no_grad():
            editor.get_parameter(scalar)[0] = value
            equation = editor.equation(0).update(keys, editor.value_diffs(0, keys, grads))
        with pytest.raises(NumericalFailure) as caught:
            editor.solve(0, equation)
        assert caught.value.remedy


class TestGradientOfTheWholeChain:
    """From the loss to every parameter: by hand in malmen's three parts, and by autograd through everything."""

    @staticmethod
    def loss(shifts: list[Tensor]) -> Tensor:
        return torch.stack([torch.sin(3 * s + i).square().sum() + s.sum() for i, s in enumerate(shifts)]).sum()

    def by_hand(self, editor: Editor, counts: tuple[int, ...], chunk: int, form: Form | None) -> None:
        solutions, rows = [], [rows_of(layer, n) for layer, n in enumerate(counts)]
        for layer, (keys, grads) in enumerate(rows):
            with torch.no_grad():
                equation = editor.equation(layer, form).update(keys, editor.value_diffs(layer, keys, grads))
            solutions.append(editor.solve(layer, equation))
        leaves = [solution.param_shift.clone().requires_grad_() for solution in solutions]
        param_grads = torch.autograd.grad(self.loss(leaves), leaves)
        for layer, ((keys, grads), solution) in enumerate(zip(rows, solutions, strict=True)):
            found = solution.gradients(keys, param_grads[layer])
            editor.accumulate_solve_gradients(layer, len(keys), found.log_ridge, found.log_preserved_strength)
            for u, g, y in zip(keys.split(chunk), grads.split(chunk), found.value_diffs.split(chunk), strict=True):
                (editor.value_diffs(layer, u, g) * y.float()).sum().backward()

    def by_autograd(self, editor: Editor, counts: tuple[int, ...]) -> dict[str, Tensor]:
        parameters, shifts = doubles(editor), []
        for layer, n in enumerate(counts):
            keys, grads = (x.double() for x in rows_of(layer, n))
            matrix = keys.T @ keys + parameters["log_ridge"][layer].exp() * torch.eye(LAYERS[layer].d_in)
            preserved = editor.preserved[layer]
            if preserved is not None:
                alpha = parameters["log_strength"][layer].exp() * (n / 32) ** parameters["strength_power"][layer]
                matrix = matrix + alpha * preserved.second_moment
            shifts.append(torch.linalg.solve(matrix, keys.T @ written_out(editor, parameters, layer, keys, grads)))
        found = torch.autograd.grad(self.loss(shifts), list(parameters.values()), materialize_grads=True)
        return dict(zip(parameters, found, strict=True))

    @pytest.mark.parametrize("counts", [(19, 19, 19), (1, 2, 3), (40, 3, 33)])
    @pytest.mark.parametrize("chunk", [4, 100])
    @pytest.mark.parametrize("form", [None, *FORMS])
    @pytest.mark.parametrize("step_size", ["log", "linear"])
    def test_every_parameter_gets_autograds_gradient(
        self,
        counts: tuple[int, ...],
        chunk: int,
        form: Form | None,
        step_size: Literal["log", "linear"],
    ) -> None:
        editor = trained(step_size)
        self.by_hand(editor, counts, chunk, form)
        wanted = self.by_autograd(editor, counts)
        assert wanted.keys() == dict(editor.named_parameters()).keys()
        for name, parameter in editor.named_parameters():
            assert parameter.grad is not None, name
            assert bool(wanted[name].any()), name
            assert relative(parameter.grad.double(), wanted[name]) <= 1e-4, name

    def test_gradients_of_several_steps_add_up(self) -> None:
        once, twice = trained(), trained()
        self.by_hand(once, (5, 5, 5), 9, None)
        for _ in range(2):
            self.by_hand(twice, (5, 5, 5), 9, None)
        for a, b in zip(once.parameters(), twice.parameters(), strict=True):
            assert a.grad is not None and b.grad is not None
            torch.testing.assert_close(b.grad, 2 * a.grad)

    def test_layers_without_preserved_keys_leave_their_strength_alone(self) -> None:
        editor = trained(preserved=False)
        self.by_hand(editor, (5, 5, 5), 9, None)
        assert editor.log_strength.grad is not None and editor.strength_power.grad is not None
        assert not editor.log_strength.grad.any() and not editor.strength_power.grad.any()


def copied(editor: Editor) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in editor.tensors().items()}


class TestTensors:
    def test_they_come_back_and_make_the_same_editor(self) -> None:
        editor, again = trained(), trained(seed=5)
        again.preserved[2] = PreservedKeys(normal(3, 7, seed=1))  # which the tensors lack: it must go
        again.load_tensors(copied(editor))
        found, wanted = again.tensors(), editor.tensors()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert all(found[name].dtype == wanted[name].dtype for name in wanted)
        for layer in range(len(LAYERS)):
            keys, grads = rows_of(layer)
            with torch.no_grad():
                diffs = [e.value_diffs(layer, keys, grads) for e in (editor, again)]
            assert torch.equal(*diffs)
            shifts = [e.solve(layer, e.equation(layer).update(keys, diffs[0])).param_shift for e in (editor, again)]
            assert torch.equal(*shifts)

    def test_their_names_are_fit_for_a_file(self) -> None:
        editor = Editor([LayerShape("model/with.odd/names", 3, 2)], rank=1, blocks=1)
        assert not any("/" in name for name in editor.tensors())

    REJECTED: ClassVar[dict[str, Callable[[dict[str, Tensor]], object]]] = {
        "an unknown name": lambda t: t.update(surprise=torch.zeros(1)),
        "a layer too many": lambda t: t.update({"normalizer.3.mean": t["normalizer.0.mean"]}),
        "a missing parameter": lambda t: t.pop("log_ridge"),
        "a missing moment": lambda t: t.pop("normalizer.1.variance"),
        "preserved keys without their count": lambda t: t.pop("preserved.0.count"),
        "a count without its preserved keys": lambda t: t.pop("preserved.0.keys"),
        "nothing": lambda t: t.clear(),
        "too long": lambda t: t.update(log_ridge=torch.zeros(4)),
        "another rank": lambda t: t.update({"networks.7x4.blocks.0.A": torch.zeros(11, 2)}),
        "a matrix for a vector": lambda t: t.update(log_ridge=torch.zeros(3, 1)),
        "preserved keys of another width": lambda t: t.update({"preserved.0.keys": torch.zeros(4, 6)}),
        "parameters in half precision": lambda t: t.update(log_ridge=t["log_ridge"].half()),
        "moments in single precision": lambda t: t.update({"normalizer.0.mean": t["normalizer.0.mean"].float()}),
        "a count that is a float": lambda t: t.update({"normalizer.0.count": torch.tensor(3.0)}),
        "a NaN parameter": lambda t: t["networks.7x4.blocks.1.B"].fill_(math.nan),
        "an infinite scalar": lambda t: t["strength_power"].fill_(math.inf),
        "a NaN moment": lambda t: t["normalizer.2.mean"].fill_(math.nan),
        "an infinite preserved key": lambda t: t["preserved.1.keys"].fill_(-math.inf),
        "preserved keys of none": lambda t: t["preserved.1.count"].fill_(0),
        "a negative count": lambda t: t["preserved.1.count"].fill_(-4),
    }

    @pytest.mark.parametrize("what", REJECTED)
    def test_what_does_not_fit_is_refused_before_anything_is_taken_in(self, what: str) -> None:
        tensors, editor = copied(trained()), trained(seed=5)
        before = copied(editor)
        self.REJECTED[what](tensors)
        with pytest.raises(UnsafeFile):
            editor.load_tensors(tensors)
        assert all(torch.equal(tensor, before[name]) for name, tensor in editor.tensors().items())
