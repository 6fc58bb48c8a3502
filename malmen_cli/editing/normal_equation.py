"""The one solve behind every edit: from keys and wanted value differences to a parameter shift.

    S = argmin |U S - D|^2 + (alpha / m) |K0 S|^2 + lambda |S|^2
    A S = U^T D,   A = U^T U + alpha C0 + lambda I,   C0 = K0^T K0 / m               (primal form)
    S = V^T X,     (V V^T + lambda I) X = [D; 0],   V = [U; sqrt(alpha / m) K0]       (kernel form)
    S = F U^T X,   (U F U^T + lambda I) X = D,   F = lambda (alpha C0 + lambda I)^-1  (spectral form)

MALMEN (arXiv 2311.04661, equations 3 and 4) is the case alpha = 0; K0 holds keys whose values must be preserved.
The spectral form takes F through C0 = Q L Q^T, which is made once for all solves with the same K0, whatever lambda and
alpha: n rows then cost a few products of n d_in^2, and neither a factorisation of A nor one of d_in^2 d_out.
Everything here is float64 (on the CPU where a device has none), because A squares the condition number of U.

Covered: n = 1, repeated keys, dead dimensions, any ridge > 0, streams of any length in bounded memory, hand-written
gradients. Not covered: ridge = 0, a ridge that is not a multiple of the identity.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from malmen_cli.editing.linear_algebra import Factor, add_gram, gram, in_double, mirror, probes, product
from malmen_cli.editing.preserved_keys import PreservedKeys
from malmen_cli.editing.shapes import Float, Tensor
from malmen_cli.editing.solution import Form, Gradients, Solution
from malmen_cli.errors import NumericalFailure

__all__ = ["Form", "Gradients", "NormalEquation", "PreservedKeys", "Solution"]

RESIDUAL_LIMIT = 1e-7
"""Largest relative residual |A S - U^T D| / (|A| |S| + |U^T D|) of a solution that is let through."""

CONDITION_LIMIT = 1e11
"""Condition number of A up to which S is within 1e-5 of the exact solution."""

REFINE_ABOVE = 1e-12
"""Relative residual above which a solution from duals, whose terms must have cancelled, is refined."""

AS_GOOD_AS_DIRECT = 1e-15
"""Relative residual, a few roundings, up to which S = P D is taken in place of A^-1 of U^T D."""

REFINEMENTS = 3
"""Steps of refinement at most; each divides the residual by about 1 / (cond(A) eps)."""

FOLD_ONE_BY_ONE = 256
"""Mean rows of the waiting chunks from which they are summed one by one; fewer are put side by side first."""


def cheapest_form(n: int, d_in: int, d_out: int, *, preserved: int, repeated: bool) -> Form:
    """The form of the least arithmetic for n rows beside so many preserved keys."""
    d, o, rows = d_in, d_out, n + preserved
    if not (preserved and repeated):
        return "kernel" if rows < d else "primal"
    # Flops of a solve and its gradients, with C0 and its eigenvectors there already. A factorisation runs at half to
    # two thirds the speed of a product and triangular solves at four fifths: they count for more.
    costs: dict[Form, float] = {
        "primal": n * d * d + 2 / 3 * d**3 + (9 * n if n < o else 5 * o) * d * d + 6 * n * d * o,
        "kernel": rows * rows * d + 2 / 3 * rows**3 + 5 * rows * rows * o + 4 * rows * d * o,
        "spectral": 6 * n * d * d + 3 * n * n * d + 2 / 3 * n**3 + 7 * n * n * o + 6 * n * d * o,
    }
    return min(costs, key=lambda form: costs[form])


class NormalEquation:
    """Accumulates rows of one layer, chunk by chunk, and solves for its parameter shift.

    Up to d_in rows are kept as they are, so that few rows are solved in a cheap form; past that they are folded into
    U^T U and U^T D. Memory is O(d_in^2 + d_in d_out) whatever the number of rows.

    Args:
        d_in, d_out: shape of the layer's weight, rows acting on the right (y = x W).
        preserved: keys whose values should stay, or None.
        form: force one form (the kernel and spectral forms then keep every row); None picks the cheapest one.
        repeated: many equations with these preserved keys will be solved and differentiated, as in training: their
            eigenvectors, once made, then pay for themselves, and the spectral form is among those to pick from.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        preserved: PreservedKeys | None = None,
        form: Form | None = None,
        repeated: bool = False,
    ) -> None:
        self.d_in, self.d_out, self.preserved, self.form, self.repeated = d_in, d_out, preserved, form, repeated
        self.n = 0
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._pending_rows = 0
        self._gram: Tensor | None = None  # its lower triangle
        self._moment: Tensor | None = None

    def update(self, keys: Float[Tensor, "n d_in"], value_diffs: Float[Tensor, "n d_out"]) -> NormalEquation:
        """Take in the rows (u_i, d_i) of more facts; any floating dtype. Returns itself."""
        if keys.shape[1] != self.d_in or value_diffs.shape[1] != self.d_out or len(keys) != len(value_diffs):
            raise ValueError(
                f"rows {tuple(keys.shape)}, {tuple(value_diffs.shape)} for a ({self.d_in}, {self.d_out}) layer"
            )
        may_fold = self.form in (None, "primal")
        if may_fold and self._pending_rows + len(keys) > self.d_in:
            self._fold()  # before there are two chunks in float64
        self.n += len(keys)
        self._pending.append((in_double(keys), in_double(value_diffs)))
        self._pending_rows += len(keys)
        if may_fold and self._pending_rows > self.d_in:
            self._fold()
        return self

    def _fold(self) -> None:
        if not self._pending:
            return
        if self._pending_rows < FOLD_ONE_BY_ONE * len(self._pending):
            self._pending = [self._stacked()]
        for keys, value_diffs in self._pending:
            if self._gram is None or self._moment is None:
                self._gram = keys.new_zeros(self.d_in, self.d_in)
                self._moment = keys.new_zeros(self.d_out, self.d_in).T  # by columns: faster to sum and to solve for
            add_gram(self._gram, keys)
            self._moment.T.addmm_(value_diffs.T, keys)
        self._pending, self._pending_rows = [], 0

    def _stacked(self) -> tuple[Tensor, Tensor]:
        if len(self._pending) == 1:
            return self._pending[0]
        return torch.cat([keys for keys, _ in self._pending]), torch.cat([diffs for _, diffs in self._pending])

    def solve(self, *, ridge: float, preserved_strength: float = 0.0) -> Solution:
        """The parameter shift for the rows taken in so far; more may follow, and another solve.

        Args:
            ridge: lambda > 0. preserved_strength: alpha >= 0; without preserved keys it has no meaning and must be 0.

        Raises:
            NumericalFailure: a row, or the answer, is not finite, or the residual passes `RESIDUAL_LIMIT`.
        """
        if not (ridge > 0 and math.isfinite(ridge) and preserved_strength >= 0 and math.isfinite(preserved_strength)):
            raise NumericalFailure(
                f"the normal equation needs ridge > 0 and preserved strength >= 0, not {ridge}, {preserved_strength}",
                remedy="The editor's training diverged: train it again with a lower learning rate.",
            )
        if self.preserved is None and preserved_strength:
            raise ValueError("a preserved strength without preserved keys")
        if not self.n:
            raise ValueError("a solve without rows")
        device = (self._pending[0][0] if self._gram is None else self._gram).device
        preserved = self.preserved.on(device) if self.preserved is not None and preserved_strength else None
        form = self.form or self._cheapest_form(preserved)
        if form == "spectral" and preserved is None:
            form = "kernel"  # which F = I makes of it
        if form == "primal":
            solution = self._solve_primal(ridge, preserved_strength, preserved)
        else:
            solution = self._solve_duals(ridge, preserved_strength, preserved, form)
        if self.form is None and form != "primal" and not solution.residual <= RESIDUAL_LIMIT:
            solution = self._solve_primal(ridge, preserved_strength, preserved)  # dearer, but no terms cancel
        if not solution.residual <= RESIDUAL_LIMIT:
            raise NumericalFailure(
                f"the normal equation of {self.n} rows was not solved: relative residual {solution.residual:.1e}",
                remedy="Keys or value differences are not finite, or far out of range: check the model and the editor.",
            )
        return solution

    def _cheapest_form(self, preserved: PreservedKeys | None) -> Form:
        """Once rows are folded there is no choice left."""
        if self._gram is not None:
            return "primal"
        anchors = 0 if preserved is None else len(preserved.keys)
        return cheapest_form(self.n, self.d_in, self.d_out, preserved=anchors, repeated=self.repeated)

    def _solve_primal(self, ridge: float, strength: float, preserved: PreservedKeys | None) -> Solution:
        """Fewer rows than d_out, beside preserved keys, as S = P D with A P = U^T: n columns of A^-1, not d_out."""
        if preserved is not None and self._gram is None and self.n < self.d_out:
            keys, value_diffs = self._stacked()
            factor = self._primal_factor(gram(keys), ridge, strength, preserved)
            pulled = factor.solve(keys.T)
            moment, shift = product(keys.T, value_diffs), product(pulled, value_diffs)
            solution = _primal_solution(self.n, ridge, strength, preserved, factor, moment, shift)
            if solution.residual <= AS_GOOD_AS_DIRECT:
                return replace(solution, _pulled=pulled, _value_diffs=value_diffs)
            # Equal keys that want different values cancel in P D, and do not in U^T D.
            return _primal_solution(self.n, ridge, strength, preserved, factor, moment, factor.solve(moment))
        self._fold()
        assert self._gram is not None and self._moment is not None
        mirror(self._gram)
        factor = self._primal_factor(self._gram.clone(), ridge, strength, preserved)
        shift = factor.solve(self._moment)
        return _primal_solution(self.n, ridge, strength, preserved, factor, self._moment, shift)

    def _primal_factor(self, matrix: Tensor, ridge: float, strength: float, preserved: PreservedKeys | None) -> Factor:
        """Of A, made of U^T U in place."""
        if preserved is not None:
            matrix.add_(preserved.second_moment, alpha=strength)
        matrix.diagonal().add_(ridge)
        return Factor(matrix)

    def _solve_duals(self, ridge: float, strength: float, preserved: PreservedKeys | None, form: Form) -> Solution:
        """S = `mapped`^T X with (rows `mapped`^T + lambda I) X = D: rows = mapped = V, or rows = U, mapped = U F."""
        rows, value_diffs = self._stacked()
        rotated = None
        if form == "spectral":
            assert preserved is not None
            values, vectors = preserved.spectrum
            shares = ridge / (strength * values + ridge)  # F's eigenvalues, 0 to 1
            rotated = product(rows, vectors)
            mapped, matrix = product(rotated * shares, vectors.T), gram((rotated * shares.sqrt()).T)
        else:
            if preserved is not None:
                anchors = in_double(preserved.keys) * math.sqrt(strength / preserved.count)
                rows = torch.cat([rows, anchors])
                value_diffs = torch.cat([value_diffs, value_diffs.new_zeros(len(anchors), self.d_out)])
            mapped, matrix = rows, gram(rows.T)
        matrix.diagonal().add_(ridge)
        factor = Factor(matrix)
        duals = factor.solve(value_diffs)
        shift = product(mapped.T, duals)

        width, along = self.d_in, probes(self.d_out, shift)
        wanted = product(value_diffs, along)
        moment = product(rows.T, wanted)
        if form == "spectral":
            assert preserved is not None and rotated is not None
            outer = strength * values + ridge
            sketch = probes(len(rows), rows)
            size = outer.square().sum() + 2 * (rotated.square() @ outer).sum()
            size = (size + (product(rows, product(rows.T, sketch))).square().sum()).sqrt()
        else:
            # A has the eigenvalues of V V^T + lambda I, and lambda itself width - count times more (or less).
            size = (matrix.norm().square() + (width - len(rows)) * ridge * ridge).clamp(min=0).sqrt()

        def residual_of(shift: Tensor) -> float:
            """|A S - U^T D| / (|A| |S| + |U^T D|) without A.

            Where U^T D cancels to nothing (equal keys, opposite values), rounding alone is left of both sides of the
            fraction; 1e-8 of what went in then counts as its size.
            """
            seen = product(shift, along)
            error = product(rows.T, product(rows, seen)) + ridge * seen - moment
            if form == "spectral" and preserved is not None:
                error.add_(product(preserved.second_moment, seen), alpha=strength)
            return _ratio(
                error, torch.maximum(size * shift.norm() + moment.norm(), 1e-8 * rows.norm() * value_diffs.norm())
            )

        residual = residual_of(shift)
        for _ in range(REFINEMENTS):
            # Equal keys that want different values have duals of the order D / lambda that cancel in V^T X, and leave
            # their rounding in S. A step against S itself (not X) takes out what of that the equation can see.
            if residual <= REFINE_ABOVE:
                break
            correction = factor.solve(value_diffs - product(rows, shift) - ridge * duals)
            duals, shift = duals + correction, shift + product(mapped.T, correction)
            residual = residual_of(shift)
        return Solution(
            param_shift=shift,
            ridge=ridge,
            preserved_strength=strength,
            form=form,
            residual=residual,
            _factor=factor,
            _n=self.n,
            _preserved=preserved,
            _rows=rows,
            _mapped=mapped,
            _rotated=rotated,
            _duals=duals,
        )


def _primal_solution(
    n: int,
    ridge: float,
    strength: float,
    preserved: PreservedKeys | None,
    factor: Factor,
    moment: Tensor,
    shift: Tensor,
) -> Solution:
    along = probes(shift.shape[1], shift)
    error = product(factor.matrix, product(shift, along)) - product(moment, along)
    return Solution(
        param_shift=shift,
        ridge=ridge,
        preserved_strength=strength,
        form="primal",
        residual=_ratio(error, factor.matrix.norm() * shift.norm() + moment.norm()),
        _factor=factor,
        _n=n,
        _preserved=preserved,
    )


def _ratio(error: Tensor, size: Tensor) -> float:
    """|error| / size, infinite where either is not finite."""
    part, whole = float(error.norm()), float(size)
    if not (math.isfinite(part) and math.isfinite(whole)):
        return math.inf
    return part / whole if whole else 0.0
