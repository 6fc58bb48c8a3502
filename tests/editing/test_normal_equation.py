"""The solve is right: optimal, equal to oracles, the same in every form and chunking, and it says when it is not."""

from __future__ import annotations

import math

import pytest
import torch
from figures import Figures
from hypothesis import assume, example, given
from hypothesis import strategies as st
from solve_problems import FORMS, KINDS, Kind, Problem, exact_oracle, make, problems, relative, svd_oracle, theorem
from torch import Tensor

from malmen_cli.editing.normal_equation import CONDITION_LIMIT, Form, NormalEquation, PreservedKeys
from malmen_cli.errors import NumericalFailure

LAW = 1e-7
R12 = "R12: the closed form is right (float64, relative)"
PRESERVING = pytest.mark.parametrize("anchors", [0, 4, 40])


class TestOptimality:
    @theorem
    @given(problems())
    def test_the_objective_has_no_slope_at_the_shift(self, problem: Problem) -> None:
        shift = problem.solve().param_shift
        leaf = shift.clone().requires_grad_()
        (slope,) = torch.autograd.grad(problem.objective(leaf), leaf)
        assert float(slope.norm()) <= 2 * LAW * float(problem.matrix.norm() * shift.norm() + problem.moment.norm())

    @theorem
    @given(problems(ridges=(-2, 4)))
    def test_the_objective_is_the_oracles_and_a_step_aside_is_worse(self, problem: Problem) -> None:
        shift = problem.solve().param_shift
        least = float(problem.objective(svd_oracle(problem)))
        assert float(problem.objective(shift)) == pytest.approx(least, rel=1e-9)
        # f(S + E) = f(S) + <E, A E> exactly: so a wrong S shows, and the check above can fail.
        aside = 1e-3 * shift.norm() * torch.ones_like(shift)
        rise = float((aside * (problem.matrix @ aside)).sum())
        assert float(problem.objective(shift + aside)) - least == pytest.approx(rise, rel=1e-3, abs=1e-9 * least)


class TestAgainstOracles:
    @theorem
    @given(problems())
    @example(make("random", 1, 24, 4, ridge=1e-6))
    @example(make("random", 1, 1, 1, ridge=1e6))
    def test_within_1e_5_of_the_svd_up_to_the_condition_limit(self, figures: Figures, problem: Problem) -> None:
        assume(float(torch.linalg.cond(problem.matrix)) <= CONDITION_LIMIT)
        error = relative(problem.solve().param_shift, svd_oracle(problem))
        figures.within(R12, "error against an SVD oracle, cond(A) up to 1e11", error, 1e-5)

    @theorem
    @given(problems(), st.sampled_from(FORMS))
    def test_so_is_every_form_with_preserved_keys(self, problem: Problem, form: Form) -> None:
        assume(problem.anchors is not None and float(torch.linalg.cond(problem.matrix)) <= CONDITION_LIMIT)
        assert relative(problem.solve(form).param_shift, svd_oracle(problem)) <= 1e-5

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("n", [1, 6, 12])
    def test_within_1e_5_of_exact_arithmetic_at_the_condition_limit(self, form: Form, kind: Kind, n: int) -> None:
        problem = make(kind, n, 7, 2, seed=n)
        ridge = float(torch.linalg.matrix_norm(problem.keys, 2)) ** 2 / (0.9 * CONDITION_LIMIT)
        problem = Problem(problem.keys, problem.value_diffs, ridge)
        assert relative(problem.solve(form).param_shift, exact_oracle(problem)) <= 1e-5


class TestResidualLaw:
    @theorem
    @given(problems(), st.floats(0, 6))
    def test_it_holds_for_any_ridge_and_keys_of_any_size(
        self, figures: Figures, problem: Problem, magnitude: float
    ) -> None:
        problem = Problem(
            problem.keys * 10**magnitude, problem.value_diffs, problem.ridge, problem.anchors, problem.strength
        )
        solution = problem.solve()
        figures.within(R12, "optimality: residual of the normal equation", problem.law(solution.param_shift), LAW)
        assert solution.residual <= LAW

    @pytest.mark.parametrize("scale", [1e1, 1e2, 1e3, 1e4, 1e6])
    def test_it_holds_for_equal_keys_that_want_different_values(self, scale: float) -> None:
        """Duals of the order D / lambda cancel in S = V^T X: unrefined, the law broke from cond(A) = 1e10 on."""
        problem = make("conflicting", 10, 32, 5, ridge=1e-6)
        problem = Problem(problem.keys * scale, problem.value_diffs, problem.ridge)
        assert problem.law(problem.solve().param_shift) <= LAW

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("ridge", [1e-6, 1.0, 1e6])
    def test_equal_keys_with_opposite_values_move_nothing(self, form: Form, ridge: float) -> None:
        one = make("random", 3, 20, 4, ridge=ridge)
        problem = Problem(torch.cat([one.keys, one.keys]), torch.cat([one.value_diffs, -one.value_diffs]), ridge)
        assert float(problem.solve(form).param_shift.norm()) <= 1e-6 * float(one.solve(form).param_shift.norm())

    @pytest.mark.parametrize(
        ("kind", "n", "form"), [("repeated", 12, None), ("conflicting", 40, None), ("dead", 12, "primal")]
    )
    @pytest.mark.parametrize("scale", [1e6, 1e8])
    def test_it_holds_where_cholesky_fails_and_the_shift_stays_the_wanted_one(
        self, kind: Kind, n: int, form: Form | None, scale: float
    ) -> None:
        """Dividing by eigenvalues that are rounding also satisfied the law, by a shift 10^4 to 10^8 times too large."""
        problem = make(kind, n, 30, 4, ridge=1e-6)
        problem = Problem(problem.keys * scale, problem.value_diffs, problem.ridge)
        assert int(torch.linalg.cholesky_ex(problem.solve(form)._factor.matrix).info), "not hard enough"
        shift = problem.solve(form).param_shift
        assert problem.law(shift) <= LAW
        # So far below the squared keys, the ridge only chooses the least shift of those that fit best.
        assert relative(shift, torch.linalg.pinv(problem.keys, rtol=1e-10) @ problem.value_diffs) <= 1e-6

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("ridge", [1e-6, 1.0])
    def test_it_holds_for_wide_layers_whose_residual_is_estimated(self, form: Form, kind: Kind, ridge: float) -> None:
        problem = make(kind, 20, 50, 90, ridge=ridge, anchors=70, strength=2.0)
        problem = Problem(problem.keys * 1e3, problem.value_diffs, problem.ridge, problem.anchors, problem.strength)
        solution = problem.solve(form)
        law = problem.law(solution.param_shift)
        assert law <= LAW and law / 4 - 1e-15 <= solution.residual <= 4 * law + 1e-15

    @pytest.mark.parametrize("scale", [1e1, 1e2, 1e3, 1e4, 1e6])
    def test_a_wide_layers_estimate_still_asks_for_refinement(self, scale: float) -> None:
        problem = make("conflicting", 10, 32, 90, ridge=1e-6)
        problem = Problem(problem.keys * scale, problem.value_diffs, problem.ridge)
        assert problem.law(problem.solve().param_shift) <= LAW

    @pytest.mark.parametrize("column", [0, 57, 89])
    def test_one_wrong_column_of_many_is_seen(self, column: int, monkeypatch: pytest.MonkeyPatch) -> None:
        problem, solve = make("random", 60, 50, 90), torch.linalg.solve_triangular

        def solve_wrongly(matrix: Tensor, right: Tensor, **options: bool) -> Tensor:
            found = solve(matrix, right, **options)
            found[0, column] += 1e-3 * found.norm()
            return found

        assert problem.solve().residual <= 1e-12
        monkeypatch.setattr(torch.linalg, "solve_triangular", solve_wrongly)
        with pytest.raises(NumericalFailure, match="residual"):
            problem.solve()

    @theorem
    @given(problems(), st.integers(0, 2**32))
    def test_a_wrong_shift_breaks_it(self, problem: Problem, seed: int) -> None:
        shift = problem.solve().param_shift
        assume(float(shift.norm()) > 0)
        noise = torch.randn(shift.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        # Along A's largest eigenvector, where every wrong shift of this size must show.
        top = torch.linalg.eigh(problem.matrix).eigenvectors[:, -1:]
        wrong = shift + 1e-5 * shift.norm() * top @ noise[:1] / noise[:1].norm()
        assert problem.law(wrong) > LAW


class TestForms:
    @theorem
    @given(problems(ridges=(-3, 6)))
    def test_kernel_is_primal(self, figures: Figures, problem: Problem) -> None:
        assume(float(torch.linalg.cond(problem.matrix)) <= 1e8)
        kernel, primal = problem.solve("kernel"), problem.solve("primal")
        assert (kernel.form, primal.form) == ("kernel", "primal")
        apart = relative(kernel.param_shift, primal.param_shift)
        figures.within(R12, "kernel form = primal form, cond(A) up to 1e8", apart, 1e-7)

    @theorem
    @given(problems(ridges=(-3, 6)))
    def test_spectral_is_primal(self, figures: Figures, problem: Problem) -> None:
        assume(problem.anchors is not None and float(torch.linalg.cond(problem.matrix)) <= 1e8)
        spectral, primal = problem.solve("spectral"), problem.solve("primal")
        assert (spectral.form, primal.form) == ("spectral", "primal")
        apart = relative(spectral.param_shift, primal.param_shift)
        figures.within(R12, "spectral form = primal form, cond(A) up to 1e8", apart, 1e-7)

    @pytest.mark.parametrize(
        ("n", "anchors", "form"),
        [(1, 0, "kernel"), (20, 2, "kernel"), (20, 300, "spectral"), (190, 300, "primal"), (300, 300, "primal")],
    )
    def test_repeated_solves_take_the_form_that_costs_least(self, n: int, anchors: int, form: Form) -> None:
        problem = make("random", n, 200, 40, anchors=anchors, strength=1.0)
        preserved = None if problem.anchors is None else PreservedKeys(problem.anchors)
        equation = NormalEquation(200, 40, preserved=preserved, repeated=True)
        solution = equation.update(problem.keys, problem.value_diffs).solve(
            ridge=1.0, preserved_strength=problem.strength
        )
        assert solution.form == form
        assert relative(solution.param_shift, svd_oracle(problem)) <= 1e-9

    @theorem
    @given(problems(ridges=(-3, 6)), st.integers(0, 2**32))
    def test_few_rows_of_a_wide_layer_are_solved_alike(self, figures: Figures, problem: Problem, seed: int) -> None:
        """Fewer rows than d_out take another way through the primal form."""
        assume(float(torch.linalg.cond(problem.matrix)) <= 1e8)
        n, generator = len(problem.keys), torch.Generator().manual_seed(seed)
        wanted = torch.randn(n, n + 1, dtype=torch.float64, generator=generator)
        wide = Problem(problem.keys, wanted, problem.ridge, problem.anchors, problem.strength)
        apart = relative(wide.solve("primal").param_shift, torch.linalg.solve(wide.matrix, wide.moment))
        figures.within(R12, "primal form of few rows = a dense solve, cond(A) up to 1e8", apart, 1e-7)

    @pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
    def test_few_rows_whose_wishes_cancel_are_solved_by_their_sum(self, scale: float) -> None:
        problem = make("conflicting", 10, 32, 90, ridge=1e-6, anchors=40, strength=1e-3)
        problem = Problem(problem.keys * scale, problem.value_diffs, problem.ridge, problem.anchors, problem.strength)
        assert problem.law(problem.solve("primal").param_shift) <= 1e-12

    def test_a_spectral_form_that_fails_is_solved_in_primal_form(self) -> None:
        """Keys that differ by 1e-9, wanting opposite values, at a ridge that rounding hides among them."""
        problem = make("random", 6, 30, 40, ridge=1e-12, anchors=300, strength=1e-12)
        keys = 1e9 * torch.cat([problem.keys, problem.keys * (1 + 1e-9)])
        diffs = torch.cat([problem.value_diffs, -problem.value_diffs])
        problem = Problem(keys, diffs, problem.ridge, problem.anchors, problem.strength)
        assert problem.anchors is not None
        equation = NormalEquation(30, 40, preserved=PreservedKeys(problem.anchors), repeated=True)
        solution = equation.update(keys, diffs).solve(ridge=problem.ridge, preserved_strength=problem.strength)
        assert solution.residual <= LAW and problem.law(solution.param_shift) <= 4 * LAW

    @pytest.mark.parametrize(
        ("n", "anchors", "form"),
        [(1, 0, "kernel"), (9, 0, "kernel"), (10, 0, "primal"), (5, 4, "kernel"), (5, 5, "primal")],
    )
    def test_the_kernel_form_is_chosen_while_all_rows_are_fewer_than_columns(
        self, n: int, anchors: int, form: Form
    ) -> None:
        assert make("random", n, 10, 2, anchors=anchors, strength=1.0).solve().form == form

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize(("n", "anchors"), [(6, 0), (20, 0), (50, 0), (6, 9), (20, 9), (6, 60)])
    @pytest.mark.parametrize("ridge", [1e-3, 1e2])
    def test_the_condition_number_is_estimated_from_just_below(
        self, form: Form, n: int, anchors: int, ridge: float
    ) -> None:
        problem = make("random", n, 20, 3, ridge=ridge, anchors=anchors, strength=2.0)
        wanted = float(torch.linalg.cond(problem.matrix))
        assert 0.94 * wanted <= problem.solve(form).condition_number <= (1 + 1e-9) * wanted

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("n", [20, 60])
    def test_where_cholesky_fails_the_condition_number_and_the_leverages_are_not_those_of_what_is_left(
        self, form: Form, n: int
    ) -> None:
        key = 1e3 * torch.randn(30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        keys = key.expand(n, 30).contiguous()
        solution = Problem(keys, torch.ones(n, 4, dtype=torch.float64), 1e-12).solve(form)
        assert solution._factor.is_deficient, "not hard enough"
        assert solution.condition_number == pytest.approx(n * float(key.square().sum()) / 1e-12, rel=1e-6)
        leverages = torch.cat(list(solution.leverages([keys])))
        assert torch.allclose(leverages, torch.full_like(leverages, 1 / n), rtol=1e-6)


class TestStreaming:
    @theorem
    @given(problems(ridges=(-1, 6)), st.integers(1, 60), st.sampled_from([None, "kernel", "primal"]))
    def test_any_chunks_are_one_shot(self, figures: Figures, problem: Problem, chunk: int, form: Form | None) -> None:
        apart = relative(problem.solve(form, chunk).param_shift, problem.solve(form).param_shift)
        figures.within(R12, "streaming in chunks = one shot", apart, 1e-8)

    @pytest.mark.parametrize("chunk", [64, 256, 300, 700])
    @pytest.mark.parametrize("form", FORMS)
    def test_matrices_of_several_blocks_from_small_and_large_chunks(self, form: Form, chunk: int) -> None:
        problem = make("random", 700, 450, 40, anchors=20, strength=2.0)
        assert relative(problem.solve(form, chunk).param_shift, svd_oracle(problem)) <= 1e-10

    @pytest.mark.parametrize("form", FORMS)
    def test_the_same_rows_give_the_same_bits(self, form: Form) -> None:
        problem = make("random", 40, 300, 50, anchors=320, strength=2.0)
        grads = make("random", 300, 1, 50).value_diffs
        first, again = problem.solve(form, 7), problem.solve(form, 7)
        assert torch.equal(first.param_shift, again.param_shift) and first.residual == again.residual
        one, two = (solution.gradients(problem.keys, grads) for solution in (first, again))
        assert torch.equal(one.value_diffs, two.value_diffs)
        assert (one.log_ridge, one.log_preserved_strength) == (two.log_ridge, two.log_preserved_strength)

    @pytest.mark.parametrize("kind", KINDS)
    def test_rows_may_follow_a_solve(self, kind: Kind) -> None:
        problem = make(kind, 40, 12, 3)
        equation = problem.equation()
        for keys, value_diffs in zip(problem.keys.split(9), problem.value_diffs.split(9), strict=True):
            shift = equation.update(keys, value_diffs).solve(ridge=problem.ridge).param_shift
        assert equation.n == 40
        assert relative(shift, problem.solve().param_shift) <= 1e-10

    def test_memory_is_bounded_and_a_solve_past_d_in_keeps_no_row(self) -> None:
        d_in, d_out = 12, 3
        equation, sizes = NormalEquation(d_in, d_out), []
        for seed in range(200):
            chunk = make("random", 5, d_in, d_out, seed=seed)
            equation.update(chunk.keys, chunk.value_diffs)
            sizes.append(sum(x.numel() for x in held(equation)))
        assert max(sizes) <= (d_in + d_in) * (d_in + d_out)
        equation.solve(ridge=1.0)
        assert sorted(x.shape for x in held(equation)) == [(d_in, d_out), (d_in, d_in)]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_rows_of_any_dtype_are_summed_in_float64(self, dtype: torch.dtype) -> None:
        problem = make("random", 30, 8, 3)
        keys, value_diffs = problem.keys.to(dtype), problem.value_diffs.to(dtype)
        found = NormalEquation(8, 3).update(keys, value_diffs).solve(ridge=1.0).param_shift
        assert torch.equal(found, Problem(keys.double(), value_diffs.double()).solve().param_shift)


def held(equation: NormalEquation) -> list[Tensor]:
    """Every tensor that an equation without preserved keys holds on to."""
    parts = [value for value in vars(equation).values() if isinstance(value, Tensor)]
    return parts + [x for value in vars(equation).values() if isinstance(value, list) for row in value for x in row]


class TestPreservedKeys:
    @theorem
    @given(st.integers(1, 12), st.integers(1, 60), st.integers(1, 20), st.integers(0, 2**32))
    def test_more_rows_than_columns_are_compressed_without_changing_the_shift(
        self, d_in: int, m: int, n: int, seed: int
    ) -> None:
        problem = make("random", n, d_in, 3, anchors=m, strength=5.0, seed=seed)
        assert problem.anchors is not None
        preserved = PreservedKeys(problem.anchors)
        assert len(preserved.keys) == min(m, d_in) and preserved.count == m
        assert relative(preserved.second_moment, problem.anchors.T @ problem.anchors / m) <= 1e-12
        again = PreservedKeys(preserved.keys, count=m)
        assert torch.equal(again.keys, preserved.keys) and again.count == m
        assert relative(problem.solve().param_shift, torch.linalg.solve(problem.matrix, problem.moment)) <= 1e-9

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_compressing_half_precision_neither_rounds_nor_overflows(self, dtype: torch.dtype) -> None:
        keys = (600 * make("random", 20_000, 4, 1).keys).to(dtype)
        wanted = keys.double().T @ keys.double() / len(keys)
        assert relative(PreservedKeys(keys).second_moment, wanted) <= 1e-6

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("form", FORMS)
    def test_a_stronger_preservation_moves_preserved_values_less(self, kind: Kind, form: Form) -> None:
        moved = []
        for strength in (0.0, 0.1, 1.0, 10.0, 1e3, 1e6):
            problem = make(kind, 8, 20, 3, anchors=6, strength=strength, ridge=0.1)
            assert problem.anchors is not None
            moved.append(float((problem.anchors @ problem.solve(form).param_shift).norm()))
        assert moved == sorted(moved, reverse=True) and moved[-1] < 1e-3 * moved[0]

    def test_without_strength_they_change_nothing(self) -> None:
        problem = make("random", 8, 20, 3, anchors=30)
        plain = Problem(problem.keys, problem.value_diffs)
        assert torch.equal(problem.solve().param_shift, plain.solve().param_shift)


class TestRefusals:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("where", ["keys", "value_diffs"])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e200])
    def test_rows_that_are_not_finite_or_overflow_are_a_numerical_failure(
        self, form: Form, where: str, value: float
    ) -> None:
        problem = make("random", 6, 10, 3, anchors=2, strength=1.0)
        getattr(problem, where)[2, 1] = value
        with pytest.raises(NumericalFailure) as caught:
            problem.solve(form)
        assert caught.value.remedy

    @pytest.mark.parametrize("ridge", [0.0, -1.0, math.nan, math.inf])
    def test_a_ridge_that_is_not_positive_and_finite(self, ridge: float) -> None:
        with pytest.raises(NumericalFailure):
            make("random", 6, 10, 3, ridge=ridge).solve()

    @pytest.mark.parametrize("strength", [-1.0, math.nan, math.inf])
    def test_a_preserved_strength_that_is_negative_or_not_finite(self, strength: float) -> None:
        with pytest.raises(NumericalFailure):
            make("random", 6, 10, 3, anchors=3, strength=strength).solve()

    def test_misuse(self) -> None:
        problem = make("random", 6, 10, 3)
        with pytest.raises(ValueError, match="without preserved keys"):
            problem.equation().update(problem.keys, problem.value_diffs).solve(ridge=1.0, preserved_strength=1.0)
        with pytest.raises(ValueError, match="layer"):
            NormalEquation(9, 3).update(problem.keys, problem.value_diffs)
        for form in FORMS:
            with pytest.raises(ValueError, match="without rows"):
                problem.equation(form).solve(ridge=1.0)


class TestLeverages:
    @theorem
    @given(problems(), st.sampled_from(FORMS))
    def test_they_are_the_diagonal_of_the_hat_matrix(self, problem: Problem, form: Form) -> None:
        assume(float(torch.linalg.cond(problem.matrix)) <= 1e9)
        hat = problem.keys @ torch.linalg.solve(problem.matrix, problem.keys.T)
        solution = problem.solve(form)
        found = torch.cat(list(solution.leverages(problem.keys.split(3))))
        assert torch.allclose(found, hat.diagonal().clamp(0, 1), atol=1e-6)
        # How far the prediction for a row follows what that row wants: d(U S)_i / d(D)_i.
        wanted = problem.value_diffs.clone()
        wanted[0] += 1.0
        nudged = Problem(problem.keys, wanted, problem.ridge, problem.anchors, problem.strength)
        moved = problem.keys[0] @ (nudged.solve(form).param_shift - solution.param_shift)
        assert torch.allclose(moved, found[0].expand_as(moved), atol=1e-5)
