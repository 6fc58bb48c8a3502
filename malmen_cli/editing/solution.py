"""The answer of a normal equation: the parameter shift, how well it is determined, and the way back through it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from malmen_cli.editing.linear_algebra import Factor, gram, in_double, largest_eigenvalue, product
from malmen_cli.editing.preserved_keys import PreservedKeys
from malmen_cli.editing.shapes import Float, Tensor

CANCELLED = 1e-6
"""A difference this much smaller than its terms is not trusted, and is computed another way."""

Form = Literal["primal", "kernel", "spectral"]


@dataclass(frozen=True)
class Gradients:
    """Derivatives of a loss L with respect to what went into a solve.

    Attributes:
        value_diffs: Y = dL/dD (n, d_out), float64.
        log_ridge: dL/d(log lambda).
        log_preserved_strength: dL/d(log alpha); 0 without preserved keys.
    """

    value_diffs: Tensor
    log_ridge: float
    log_preserved_strength: float


@dataclass(frozen=True)
class Solution:
    """A parameter shift with the factorisation that gave it, which serves the gradients too.

    Attributes:
        param_shift: S (d_in, d_out), float64.
        ridge: lambda. preserved_strength: alpha (0 without preserved keys).
        form: which form was solved.
        residual: |A S - U^T D| / (|A| |S| + |U^T D|), Frobenius norms, of which those of many columns are estimates
            (`linear_algebra.probes`); what is wrong in one column alone is measured in full.
    """

    param_shift: Float[Tensor, "d_in d_out"]
    ridge: float
    preserved_strength: float
    form: Form
    residual: float
    _factor: Factor
    _n: int  # rows of U
    _preserved: PreservedKeys | None  # None where alpha = 0
    _rows: Tensor | None = None  # kernel form: V = [U; sqrt(alpha / m) K0]; spectral form: U
    _mapped: Tensor | None = None  # kernel form: V; spectral form: U F
    _rotated: Tensor | None = None  # spectral form: U Q
    _duals: Tensor | None = None  # kernel and spectral form: X

    _pulled: Tensor | None = None  # primal form of few rows: P = A^-1 U^T
    _value_diffs: Tensor | None = None  # beside P: D

    @cached_property
    def condition_number(self) -> float:
        """cond(A), estimated by Lanczos iteration on A and on its inverse: a lower bound, within a few per cent.

        Where rounding has wiped out directions of A their eigenvalue is taken for lambda, the least that it can be: an
        upper bound there.
        """
        matrix, factor = self._factor.matrix, self._factor
        if self._rows is not None:
            # A has the eigenvalues of V V^T + lambda I, and lambda besides when V has fewer rows than columns. With
            # more rows than columns (a forced form) it is the other way round, and A itself must be asked.
            rows, columns = self._rows.shape
            if self.form == "kernel" and rows < columns:
                return largest_eigenvalue(lambda x: matrix @ x, matrix) / self.ridge
            matrix = gram(self._rows)
            if self.form == "spectral" and self._preserved is not None:
                matrix.add_(self._preserved.second_moment, alpha=self.preserved_strength)
            matrix.diagonal().add_(self.ridge)
            factor = Factor(matrix)
        largest = largest_eigenvalue(lambda x: matrix @ x, matrix)
        return largest / self.ridge if factor.is_deficient else largest * largest_eigenvalue(factor.solve, matrix)

    def leverages(self, keys: Iterable[Tensor]) -> Iterator[Float[Tensor, "n"]]:
        """u^T A^-1 u of every row u of the solve, float64, 0 to 1: how far the solution is free to follow that row.

        From duals 1 - lambda [(U F U^T + lambda I)^-1]_ii (or V V^T), which needs no difference of large terms.

        Args:
            keys: U, the keys of the solve, chunk by chunk and in the order they were taken in.
        """
        matrix = self._factor.matrix
        if self._rows is not None:
            leverages = (1 - self.ridge * self._factor.inverse_diagonal(self.ridge)[: self._n]).clamp(0, 1)
        start = 0
        for chunk in keys:
            if self._rows is not None:
                yield leverages[start : start + len(chunk)]
            else:
                rows = in_double(chunk).to(matrix.device)
                yield (rows * self._factor.solve(rows.T).T).sum(1).clamp(0, 1)
            start += len(chunk)

    def gradients(self, keys: Float[Tensor, "n d_in"], param_grads: Float[Tensor, "d_in d_out"]) -> Gradients:
        """Back through the solve, from G = dL/dS to the value differences, log lambda and log alpha.

        With M = A^-1 G:  dL/dD = U M,  dL/d(log lambda) = -lambda <M, S>,  dL/d(log alpha) = -alpha <C0 M, S>.

        Kernel form, with Y' = (V V^T + lambda I)^-1 V G = V M: the last two are -lambda <Y', X> and, over the rows of
        K0 only, lambda <Y'_0, X_0>: no difference of nearly equal terms and no division by alpha.

        Primal form of n < d_out rows, with P = A^-1 U^T: see `_gradients_of_few_rows`.

        Spectral form, with Y = (U F U^T + lambda I)^-1 U F G = U M: the last two add up to -lambda <M, F^-1 S> =
        -lambda <Y, X>, and the second is -<(I - F)(G - U^T Y), S>, with F's own I - F = alpha L / (alpha L + lambda)
        in the eigenvectors: relative to |G| |S| neither loses a digit to lambda or alpha.

        Args:
            keys: U, the keys of the solve. param_grads: G.
        """
        grads = in_double(param_grads)
        if self._pulled is not None and self._value_diffs is not None:
            return self._gradients_of_few_rows(self._pulled, self._value_diffs, grads)
        if self.form == "primal":
            return self._primal_gradients(in_double(keys), grads)
        assert self._mapped is not None and self._duals is not None
        products = self._factor.solve(product(self._mapped, grads))
        both = -self.ridge * _inner(products, self._duals)
        if self.form == "kernel":
            strength = self.ridge * _inner(products[self._n :], self._duals[self._n :])
            return Gradients(products[: self._n], both, strength)
        assert self._preserved is not None and self._rotated is not None
        values, vectors = self._preserved.spectrum
        whole = self.preserved_strength * values + self.ridge
        shares = (self.ridge / whole) * (self.preserved_strength * values / whole)  # F (I - F)
        shared = self._rotated * shares
        turned = product(product(shared, vectors.T), grads) - product(product(shared, self._rotated.T), products)
        strength = -_inner(turned, self._duals)
        return Gradients(products, both - strength, strength)

    def _gradients_of_few_rows(self, pulled: Tensor, value_diffs: Tensor, grads: Tensor) -> Gradients:
        """With S = P D: U M = P^T G and <B M, S> = <G, A^-1 B P D> for B = I and C0, by n columns of A^-1 at a time."""
        again = self._factor.solve(pulled)
        log_ridge = -self.ridge * _inner(product(again.T, grads), value_diffs)
        strength = 0.0
        if self._preserved is not None:
            kept = self._factor.solve(product(self._preserved.second_moment, pulled))
            strength = -self.preserved_strength * _inner(product(kept.T, grads), value_diffs)
        return Gradients(product(pulled.T, grads), log_ridge, strength)

    def _primal_gradients(self, keys: Tensor, grads: Tensor) -> Gradients:
        solved = self._factor.solve(grads)
        products = product(keys, solved)
        log_ridge = -self.ridge * _inner(solved, self.param_shift)
        strength = 0.0
        if self._preserved is not None:
            # alpha C0 = A - U^T U - lambda I, whose parts cost less than C0 itself where rows are few.
            terms = [_inner(grads, self.param_shift), log_ridge]
            if len(keys) < len(grads):
                terms.append(-_inner(products, product(keys, self.param_shift)))
                strength = -sum(terms)
            if abs(strength) <= CANCELLED * sum(map(abs, terms)):
                moment = self._preserved.second_moment
                strength = -self.preserved_strength * _inner(product(moment, solved), self.param_shift)
        return Gradients(products, log_ridge, strength)


def _inner(a: Tensor, b: Tensor) -> float:
    if not a.is_contiguous():  # as triangular solves leave it: read both along it
        a, b = a.T, b.T
    return float(torch.dot(a.reshape(-1), b.reshape(-1)))
