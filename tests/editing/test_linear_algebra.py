"""The products, sums, eigenvalues and probes that a solve is made of, against their plain definitions."""

from __future__ import annotations

import pytest
import torch
from solve_problems import relative
from torch import Tensor

from malmen_cli.editing.linear_algebra import BLOCK, EXACT_UP_TO, add_gram, gram, largest_eigenvalue, probes, product


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
