"""The products, sums, eigenvalues and probes that a solve is made of, against their plain definitions."""

from __future__ import annotations

import pytest
import torch
from solve_problems import relative
from torch import Tensor

from malmen_cli.editing.linear_algebra import (
    BLOCK,
    EXACT_UP_TO,
    PANEL,
    Factor,
    add_gram,
    cholesky,
    gram,
    largest_eigenvalue,
    probes,
    product,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_columns(x: Tensor) -> Tensor:
    return x.T.contiguous().T


@pytest.mark.parametrize("width", [1, EXACT_UP_TO, EXACT_UP_TO + 1, 90])
def test_a_product_is_the_same_however_its_factors_are_stored(width: int) -> None:
    a, b = normal(40, 30), normal(30, width, seed=1)
    for left in (a, by_columns(a)):
        for right in (b, by_columns(b)):
            assert relative(product(left, right), a @ b) <= 1e-14


@pytest.mark.parametrize("width", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7])
@pytest.mark.parametrize("rows", [1, 50])
def test_a_gram_matrix_is_whole_though_half_is_summed(width: int, rows: int) -> None:
    x = normal(rows, width)
    assert relative(gram(x), x.T @ x) <= 1e-14
    total = torch.zeros(width, width, dtype=torch.float64)
    for part in x.split(7):
        add_gram(total, part)
    assert relative(total.tril(), (x.T @ x).tril()) <= 1e-14
    assert relative(gram(x.T), x @ x.T) <= 1e-14


@pytest.mark.parametrize("size", [1, 4 * PANEL, 4 * PANEL + 1, 5 * PANEL, 6 * PANEL - 1])
class TestCholesky:
    @pytest.mark.parametrize("fall", [0.0, 6.0, 12.0])
    def test_the_factor_gives_the_matrix_back(self, size: int, fall: float) -> None:
        keys = normal(size, size) * torch.logspace(0, -fall / 2, size, dtype=torch.float64)
        matrix = gram(keys) / size
        matrix.diagonal().add_(10 ** (-fall - 1))
        lower, failed = cholesky(matrix)
        assert not failed and torch.equal(lower, lower.tril())
        assert relative(lower @ lower.T, matrix) <= 1e-14
        assert relative(lower, torch.linalg.cholesky(matrix)) <= 1e-14 * 10 ** (fall / 2)

    def test_equal_keys_and_a_ridge_near_rounding_are_solved_as_well_as_by_lapack(self, size: int) -> None:
        keys = normal(3, size).repeat(40, 1)
        matrix = gram(keys)
        matrix.diagonal().add_(1e-10 * float(matrix.diagonal().mean()))
        right = keys.T @ normal(len(keys), 7)
        solved = Factor(matrix).solve(right)
        plain = torch.cholesky_solve(right, torch.linalg.cholesky(matrix))
        ours, lapacks = (float((matrix @ x - right).norm()) for x in (solved, plain))
        assert ours <= 3 * lapacks + 1e-15 * float(right.norm())

    def test_the_upper_triangle_is_not_read(self, size: int) -> None:
        matrix = gram(normal(size, size))
        matrix.diagonal().add_(1.0)
        lower, _ = cholesky(matrix)
        above = matrix.triu(1).bool()
        assert torch.equal(cholesky(matrix.masked_fill(above, float("nan")))[0], lower)

    @pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
    @pytest.mark.parametrize("value", [-1.0, float("nan")])
    def test_what_has_no_factor_is_said_to(self, size: int, where: float, value: float) -> None:
        matrix = torch.eye(size, dtype=torch.float64)
        at = round(where * (size - 1))
        matrix[at, at] = value
        assert cholesky(matrix)[1]


@pytest.mark.parametrize("size", [1, 5, 400])
@pytest.mark.parametrize("fall", [0.0, 3.0, 8.0])
def test_the_largest_eigenvalue_is_found_from_just_below(size: int, fall: float) -> None:
    vectors = torch.linalg.qr(normal(size, size)).Q
    values = torch.logspace(0, -fall, size, dtype=torch.float64)
    matrix = (vectors * values) @ vectors.T
    assert 0.97 <= largest_eigenvalue(lambda x: matrix @ x, matrix) <= 1 + 1e-12


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_largest_eigenvalue_of_what_is_not_finite_is_nan(value: float) -> None:
    matrix = torch.full((4, 4), value, dtype=torch.float64)
    assert not largest_eigenvalue(lambda x: matrix @ x, matrix) < float("inf")


class TestProbes:
    def test_few_columns_are_measured_in_full(self) -> None:
        error = normal(50, EXACT_UP_TO)
        assert torch.equal(error @ probes(EXACT_UP_TO, error), error)

    def test_an_error_in_one_column_is_measured_exactly_whichever_it_is(self) -> None:
        width = 300
        for column in range(width):
            error = torch.zeros(20, width, dtype=torch.float64)
            error[:, column] = normal(20, seed=column)
            assert float((error @ probes(width, error)).norm()) == pytest.approx(float(error.norm()), rel=1e-12)

    @pytest.mark.parametrize("rank", [1, 2, 50])
    def test_an_error_of_any_rank_is_measured_within_a_factor_of_four(self, rank: int) -> None:
        # 300 errors each: of rank one P(|E Z| < |E| / 4) is 4e-6 and P(|E Z| > 4 |E|) is nil, by chi-square.
        along = probes(300, normal(1))
        for seed in range(300):
            error = normal(20, rank, seed=seed) @ normal(rank, 300, seed=1000 + seed)
            assert 0.25 <= float((error @ along).norm() / error.norm()) <= 4

    def test_they_are_the_same_every_time(self) -> None:
        assert torch.equal(probes(300, normal(1)), probes(300, normal(1)))
