from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from solve_problems import relative, theorem
from torch import Tensor

from malmen_cli.editing.normalizer import Normalizer


def normalizer_of(rows: Tensor, sizes: list[int] | int | None = None) -> Normalizer:
    normalizer = Normalizer(rows.shape[1])
    for chunk in rows.split(sizes or len(rows)):
        normalizer.update(chunk)
    return normalizer


def sample(n: int, width: int, *, mean: float = 0.0, std: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(n, width, dtype=torch.float64, generator=generator)


class TestMerge:
    @theorem
    @given(st.lists(st.integers(0, 9), min_size=1).filter(any), st.floats(-1e3, 1e3), st.integers(0, 2**32))
    def test_any_chunks_even_of_one_row_or_none_give_the_one_shot_biased_moments(
        self, sizes: list[int], mean: float, seed: int
    ) -> None:
        rows = sample(sum(sizes), 4, mean=mean, seed=seed)
        found = normalizer_of(rows, sizes)
        assert found.count == len(rows)
        torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.variance, rows.var(0, correction=0), rtol=1e-8, atol=1e-18 * (1 + mean**2))

    @theorem
    @given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 2**32))
    def test_two_normalizers_merge_into_the_one_of_all_rows_in_either_order(self, a: int, b: int, seed: int) -> None:
        rows = sample(a + b, 3, mean=5.0, seed=seed)
        for first, second in ((rows[:a], rows[a:]), (rows[a:], rows[:a])):
            merged = Normalizer(3)
            for part in (first, second):
                other = Normalizer(3)
                other.update(part)
                merged.merge(other)
            assert merged.count == a + b
            if a + b:
                torch.testing.assert_close(merged.mean, rows.mean(0), rtol=1e-12, atol=1e-12)
                torch.testing.assert_close(merged.variance, rows.var(0, correction=0), rtol=1e-10, atol=1e-18)

    @pytest.mark.parametrize("chunk", [1, 7, 1000])
    def test_a_large_offset_costs_no_accuracy(self, chunk: int) -> None:
        """The textbook E[x^2] - E[x]^2 keeps no digit of this variance in float32 and four in float64."""
        rows = sample(1000, 6, mean=1e4, std=1e-2)
        found = normalizer_of(rows, chunk)
        assert relative(found.mean, rows.mean(0)) <= 1e-14
        assert relative(found.variance, rows.var(0, correction=0)) <= 1e-8
        naive = rows.float().square().mean(0) - rows.float().mean(0).square()
        assert relative(naive.double(), rows.var(0, correction=0)) > 1

    def test_rows_of_half_precision_are_merged_in_float64(self) -> None:
        rows = sample(100, 5).bfloat16()
        assert normalizer_of(rows, 9).variance.dtype == torch.float64
        assert relative(normalizer_of(rows, 9).variance, rows.double().var(0, correction=0)) <= 1e-12


class TestScale:
    @pytest.mark.parametrize("value", [0.0, 0.1, 1e4 / 3, -7.7, 1e-30])
    @pytest.mark.parametrize("chunk", [1, 7, 100_000])
    def test_a_dimension_that_never_varied_maps_to_0(self, value: float, chunk: int) -> None:
        rows = sample(100_000 if chunk == 100_000 else 700, 3)
        rows[:, 1] = value
        _, inverse = normalizer_of(rows, chunk).scale()
        assert inverse[1] == 0 and bool((inverse[[0, 2]] > 0.9).all())

    def test_a_single_row_maps_to_0_everywhere(self) -> None:
        mean, inverse = normalizer_of(sample(1, 4)).scale()
        assert bool(torch.isfinite(mean).all()) and not inverse.any()

    def test_it_standardises_the_rows_it_saw(self) -> None:
        rows = sample(500, 4, mean=3.0, std=0.02)
        mean, inverse = normalizer_of(rows, 13).scale()
        z = (rows - mean) * inverse
        assert mean.dtype == inverse.dtype == torch.float32
        torch.testing.assert_close(z.mean(0), torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-4)
        torch.testing.assert_close(z.var(0, correction=0), torch.ones(4, dtype=torch.float64), rtol=1e-6, atol=0)

    def test_a_dimension_of_float32_denormals_does_not_overflow(self) -> None:
        rows = sample(50, 2)
        rows[:, 0] *= 1e-43
        _, inverse = normalizer_of(rows).scale()
        assert bool(torch.isfinite(inverse).all())

    def test_a_small_but_real_variation_is_kept(self) -> None:
        rows = torch.full((1000, 1), 100.0)
        rows[0] = 100.00001  # the next float32
        _, inverse = normalizer_of(rows).scale()
        assert float(inverse) > 0
