"""The hand-written gradients of the solve are autograd's through a dense solve that shares no code with them.

The spectral form's, derived once more, with B = alpha C0 + lambda I and r = D - U S. A S = U^T D says B S = U^T r,
so S = B^-1 U^T r, and with K = I + U B^-1 U^T: r = K^-1 D, S = B^-1 U^T K^-1 D, Y = dL/dD = K^-1 U B^-1 G (F = lambda
B^-1 and X = r / lambda are the code's). A varies by dA, and S by -A^-1 dA S, so that dL = -<M, dA S> with M = A^-1 G =
B^-1 (G - U^T Y). For dA = B, which is log lambda and log alpha at once, -<M, B S> = -<U M, r> = -<Y, r>, without a
product of d_in^2. For dA = alpha C0 alone, alpha C0 B^-1 = I - F, hence -<(I - F)(G - U^T Y), S>. Autograd judges.
"""

from __future__ import annotations

import math

import pytest
import torch
from figures import Figures
from hypothesis import assume, given
from hypothesis import strategies as st
from solve_problems import FORMS, KINDS, Kind, Problem, counted, exact_oracle, make, problems, relative, theorem
from torch import Tensor

from malmen_cli.editing.normal_equation import Form, Gradients, NormalEquation, PreservedKeys


def loss_of(shift: Tensor) -> Tensor:
    """A smooth, curved loss L(S) whose gradient differs at every entry."""
    weight = torch.linspace(-1, 2, shift.numel(), dtype=torch.float64).view_as(shift)
    return (weight * torch.sin(shift + weight)).sum()


def by_hand(problem: Problem, form: Form | None) -> tuple[Gradients, Tensor]:
    """malmen's gradients and G = dL/dS, for which only S is differentiated."""
    solution = problem.solve(form)
    leaf = solution.param_shift.clone().requires_grad_()
    (param_grads,) = torch.autograd.grad(loss_of(leaf), leaf)
    return solution.gradients(problem.keys, param_grads), param_grads


def by_autograd(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """dL/dD, dL/d(log lambda), dL/d(log alpha) through `torch.linalg.solve` of the dense A."""
    diffs = problem.value_diffs.clone().requires_grad_()
    log_ridge = torch.tensor(math.log(problem.ridge), dtype=torch.float64, requires_grad=True)
    log_strength = torch.tensor(math.log(problem.strength or 1.0), dtype=torch.float64, requires_grad=True)
    matrix = problem.keys.T @ problem.keys + log_ridge.exp() * torch.eye(problem.keys.shape[1], dtype=torch.float64)
    if problem.anchors is not None:
        matrix = matrix + log_strength.exp() / len(problem.anchors) * problem.anchors.T @ problem.anchors
    loss = loss_of(torch.linalg.solve(matrix, problem.keys.T @ diffs))
    grads = torch.autograd.grad(loss, (diffs, log_ridge, log_strength), materialize_grads=True)
    return grads[0], grads[1], grads[2]


def check(problem: Problem, form: Form | None, tolerance: float) -> float:
    """The worst error: of the value differences relative to their norm, of the scalars to |G| |S|, the size of what
    their inner products sum."""
    found, param_grads = by_hand(problem, form)
    value_diffs, log_ridge, log_strength = by_autograd(problem)
    size = float(param_grads.norm() * problem.solve(form).param_shift.norm())
    scalars = (found.log_ridge - float(log_ridge), found.log_preserved_strength - float(log_strength))
    worst = max([relative(found.value_diffs, value_diffs), *(abs(scalar) / size for scalar in scalars if scalar)])
    assert worst <= tolerance
    return worst


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("anchors", [0, 3, 40])
@pytest.mark.parametrize("n", [1, 8, 30])
def test_gradients_are_autograds(figures: Figures, form: Form, kind: Kind, anchors: int, n: int) -> None:
    problem = make(kind, n, 14, 5, ridge=0.3, anchors=anchors, strength=2.0, seed=n)
    worst = check(problem, form, 1e-11)
    figures.within("R12: the closed form is right (float64, relative)", "gradients by hand = autograd", worst, 1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("anchors", [0, 3, 40])
def test_gradients_of_fewer_rows_than_outputs_are_autograds(form: Form, kind: Kind, anchors: int) -> None:
    check(make(kind, 8, 14, 35, ridge=0.3, anchors=anchors, strength=2.0), form, 1e-11)


@theorem
@given(problems(), st.sampled_from([None, *FORMS]))
def test_gradients_are_autograds_as_far_as_the_condition_number_allows(problem: Problem, form: Form | None) -> None:
    # Of the larger of the two forms' matrices: lambda is an eigenvalue of at least one of them.
    condition = float(torch.linalg.matrix_norm(problem.matrix, 2)) / problem.ridge
    assume(condition <= 1e9)
    check(problem, form, max(1e-11, 1e-14 * condition))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("anchors", [0, 3, 40])
@pytest.mark.parametrize("kind", ["repeated", "conflicting"])
def test_a_tiny_ridge_and_repeated_keys(kind: Kind, form: Form, anchors: int) -> None:
    check(make(kind, 8, 14, 5, ridge=1e-6, anchors=anchors, strength=2.0), form, 1e-6)


def test_a_tiny_ridge_costs_the_kernel_form_no_digit() -> None:
    """dL/d(log lambda) against exact arithmetic; the control takes A^-1 G to be (G - U^T Y) / lambda, which cancels."""
    # <A^-1 G, S> of exact factors loses digits in its own sum: the oracle is lambda <Y, X>, by U U^T + lambda I.
    problem = make("random", 4, 7, 2, ridge=1e-9)
    solution = problem.solve("kernel")
    param_grads = make("random", 7, 7, 2, seed=1).value_diffs
    kernel = Problem(problem.keys.T, param_grads, problem.ridge)
    duals, products = exact_oracle(kernel, problem.value_diffs), exact_oracle(kernel)
    log_ridge = -problem.ridge * float((products * duals).sum())
    found = solution.gradients(problem.keys, param_grads)
    assert found.log_ridge == pytest.approx(log_ridge, rel=1e-12, abs=0)
    shorter = -float(((param_grads - problem.keys.T @ found.value_diffs) * solution.param_shift).sum())
    assert shorter != pytest.approx(log_ridge, rel=1e-9, abs=0)


def test_the_scalars_agree_relative_to_themselves_where_they_are_well_determined() -> None:
    for form in FORMS:
        problem = make("random", 20, 14, 5, ridge=2.0, anchors=9, strength=3.0)
        found, _ = by_hand(problem, form)
        _, log_ridge, log_strength = by_autograd(problem)
        assert found.log_ridge == pytest.approx(float(log_ridge), rel=1e-11, abs=0)
        assert found.log_preserved_strength == pytest.approx(float(log_strength), rel=1e-11, abs=0)


def test_without_preserved_keys_nothing_depends_on_their_strength() -> None:
    for form in FORMS:
        assert by_hand(make("random", 9, 14, 5), form)[0].log_preserved_strength == 0.0


@pytest.mark.parametrize("form", FORMS)
def test_one_factorisation_serves_the_shift_and_every_gradient(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(torch.linalg, "cholesky_ex", counted(torch.linalg.cholesky_ex, sizes))
    problem = make("random", 20, 14, 5, anchors=9, strength=3.0)
    by_hand(problem, form)
    assert sizes == [{"kernel": 29, "primal": 14, "spectral": 20}[form]]


@pytest.mark.parametrize("anchors", [3, 40])
@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("strength", [1e-9, 1e-3, 1e6])
def test_the_gradient_of_a_strength_far_off_keeps_its_digits(n: int, anchors: int, strength: float) -> None:
    """Of a weak one A - U^T U - lambda I, which is alpha C0, cancels; the kernel form has no such difference.

    Of a strong one all but nothing is left, of which rounding of C0 takes digits: it counts relative to |G| |S|.
    """
    problem = make("random", n, 14, 5, ridge=0.3, anchors=anchors, strength=strength)
    kernel, primal, spectral = (by_hand(problem, form)[0].log_preserved_strength for form in FORMS)
    size = float(by_hand(problem, "kernel")[1].norm() * problem.solve("kernel").param_shift.norm())
    assert abs(kernel) > 1e-14 * size, "nothing to compare"
    assert [primal, spectral] == pytest.approx([kernel] * 2, rel=1e-8, abs=1e-9 * size if strength > 1 else 0)


def test_the_eigenvectors_of_preserved_keys_are_made_once_for_all_solves(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(torch.linalg, "eigh", counted(torch.linalg.eigh, sizes))
    first = make("random", 4, 200, 40, anchors=300, strength=2.0)
    assert first.anchors is not None
    preserved = PreservedKeys(first.anchors)
    for seed in range(5):
        keys, diffs = make("random", 1 + seed, 200, 40, seed=seed).keys, make("random", 1 + seed, 200, 40).value_diffs
        equation = NormalEquation(200, 40, preserved=preserved, repeated=True).update(keys, diffs)
        solution = equation.solve(ridge=0.1 + seed, preserved_strength=2.0 + seed)
        assert solution.form == "spectral"
        solution.gradients(keys, torch.ones(200, 40, dtype=torch.float64))
    assert sizes == [200]
