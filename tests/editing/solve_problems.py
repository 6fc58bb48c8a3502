"""Normal equations to be solved, and three oracles that share no code with `malmen_cli.editing`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from malmen_cli.editing.normal_equation import Form, NormalEquation, PreservedKeys, Solution

Kind = Literal["random", "repeated", "conflicting", "dead", "decaying"]
KINDS: tuple[Kind, ...] = ("random", "repeated", "conflicting", "dead", "decaying")
FORMS: tuple[Form, ...] = ("kernel", "primal", "spectral")

theorem = settings(deadline=None, derandomize=True, max_examples=60)


@dataclass(frozen=True, slots=True)
class Problem:
    """U (n, d_in), D (n, d_out), lambda, K0 (m, d_in) or None, alpha; all float64."""

    keys: Tensor
    value_diffs: Tensor
    ridge: float = 1.0
    anchors: Tensor | None = None
    strength: float = 0.0

    @property
    def matrix(self) -> Tensor:
        """A, formed as it is written."""
        matrix = self.keys.T @ self.keys + self.ridge * torch.eye(self.keys.shape[1], dtype=torch.float64)
        if self.anchors is not None:
            matrix = matrix + self.strength / len(self.anchors) * self.anchors.T @ self.anchors
        return matrix

    @property
    def moment(self) -> Tensor:
        return self.keys.T @ self.value_diffs

    def objective(self, shift: Tensor) -> Tensor:
        """|U S - D|^2 + (alpha / m) |K0 S|^2 + lambda |S|^2."""
        loss = (self.keys @ shift - self.value_diffs).square().sum() + self.ridge * shift.square().sum()
        if self.anchors is not None:
            loss = loss + self.strength / len(self.anchors) * (self.anchors @ shift).square().sum()
        return loss

    def law(self, shift: Tensor) -> float:
        """|A S - U^T D| / (|A| |S| + |U^T D|)."""
        matrix, moment = self.matrix, self.moment
        scale = float(matrix.norm() * shift.norm() + moment.norm())
        return float((matrix @ shift - moment).norm()) / scale if scale else 0.0

    def equation(self, form: Form | None = None) -> NormalEquation:
        """The equation without its rows."""
        preserved = None if self.anchors is None else PreservedKeys(self.anchors)
        return NormalEquation(self.keys.shape[1], self.value_diffs.shape[1], preserved=preserved, form=form)

    def solve(self, form: Form | None = None, chunk: int | None = None) -> Solution:
        """malmen's answer, from rows fed in chunks of `chunk` (the last one ragged), or all at once."""
        equation = self.equation(form)
        size = chunk or len(self.keys)
        for keys, value_diffs in zip(self.keys.split(size), self.value_diffs.split(size), strict=True):
            equation.update(keys, value_diffs)
        return equation.solve(ridge=self.ridge, preserved_strength=self.strength)


def svd_oracle(problem: Problem) -> Tensor:
    """Least squares by SVD on [U; sqrt(alpha / m) K0; sqrt(lambda) I] S = [D; 0; 0], which never squares U."""
    d_in, d_out = problem.keys.shape[1], problem.value_diffs.shape[1]
    blocks = [problem.keys]
    if problem.anchors is not None:
        blocks.append(math.sqrt(problem.strength / len(problem.anchors)) * problem.anchors)
    left = torch.cat([*blocks, math.sqrt(problem.ridge) * torch.eye(d_in, dtype=torch.float64)])
    zeros = problem.value_diffs.new_zeros(len(left) - len(problem.keys), d_out)
    return torch.linalg.lstsq(left, torch.cat([problem.value_diffs, zeros]), driver="gelsd").solution


def exact_oracle(problem: Problem, right: Tensor | None = None) -> Tensor:
    """A^-1 U^T D, or A^-1 `right`, by Gaussian elimination in rational numbers: no rounding but the last.

    Without K0, and for a few rows only.
    """
    keys, diffs = _fractions(problem.keys), _fractions(problem.value_diffs)
    columns = list(zip(*keys, strict=True))
    moment = [[_dot(u, d) for d in zip(*diffs, strict=True)] for u in columns] if right is None else _fractions(right)
    rows = [[_dot(u, v) for v in columns] + right_side for u, right_side in zip(columns, moment, strict=True)]
    d_in = len(rows)
    for i in range(d_in):
        rows[i][i] += Fraction(problem.ridge)
    for i, pivot in enumerate(rows):
        rows[i] = pivot = [x / pivot[i] for x in pivot]
        for j in range(d_in):
            if j != i and rows[j][i]:
                rows[j] = [x - rows[j][i] * y for x, y in zip(rows[j], pivot, strict=True)]
    return torch.tensor([[float(x) for x in row[d_in:]] for row in rows], dtype=torch.float64)


def _dot(a: Sequence[Fraction], b: Sequence[Fraction]) -> Fraction:
    return sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))


def _fractions(matrix: Tensor) -> list[list[Fraction]]:
    return [[Fraction(x) for x in row] for row in matrix.tolist()]


def relative(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|; 0 where both are 0."""
    gap = float((found - wanted).norm())
    return gap / float(wanted.norm()) if gap else 0.0


def make(
    kind: Kind,
    n: int,
    d_in: int,
    d_out: int,
    *,
    ridge: float = 1.0,
    anchors: int = 0,
    strength: float = 0.0,
    seed: int = 0,
) -> Problem:
    """A problem of a kind.

    Args:
        kind: random rows; every key twice or more, wanting the same value or different ones ("conflicting"); a third
            of the dimensions 0 in every key; singular values that fall by 10^4. anchors: m, random keys K0.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    keys, value_diffs = normal(n, d_in), normal(n, d_out)
    half = torch.arange(n) % max(n // 2, 1)
    if kind in ("repeated", "conflicting"):
        keys = keys[half]
    if kind == "repeated":
        value_diffs = value_diffs[half]
    if kind == "dead":
        keys[:, : max(d_in // 3, 1)] = 0
    if kind == "decaying":
        keys = keys * torch.logspace(0, -4, d_in, dtype=torch.float64)
    return Problem(keys, value_diffs, ridge, normal(anchors, d_in) if anchors else None, strength if anchors else 0.0)


@st.composite
def problems(draw: st.DrawFn, *, ridges: tuple[float, float] = (-6, 6), widest: int = 24) -> Problem:
    """Any kind and shape (n = 1, n < d_in, n > d_in), lambda = 10^ridges, with preserved keys or not, scaled keys."""
    problem = make(
        draw(st.sampled_from(KINDS)),
        draw(st.integers(1, 2 * widest)),
        draw(st.integers(1, widest)),
        draw(st.integers(1, 6)),
        ridge=10 ** draw(st.floats(*ridges)),
        anchors=draw(st.sampled_from((0, 0, 1, 5, 3 * widest))),
        strength=10 ** draw(st.floats(-3, 3)),
        seed=draw(st.integers(0, 2**32)),
    )
    scale = 10 ** draw(st.floats(-1, 2))
    return Problem(problem.keys * scale, problem.value_diffs, problem.ridge, problem.anchors, problem.strength)


def counted(function: Callable[..., object], calls: list[int]) -> Callable[..., object]:
    """The function itself, noting the size of its first argument at every call."""

    def call(first: Tensor, *args: object, **options: object) -> object:
        calls.append(len(first))
        return function(first, *args, **options)

    return call
