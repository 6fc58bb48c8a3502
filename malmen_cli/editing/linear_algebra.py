"""The linear algebra of a solve: products, Gram matrices, factorisation, extreme eigenvalues, probes of residuals."""

from __future__ import annotations

from collections.abc import Callable

import torch

from malmen_cli.editing.shapes import Float, Tensor

BLOCK = 192
"""Columns of a Gram matrix that are summed at once: the products above the diagonal blocks are left out."""

PANEL = 96
"""Columns that a factorisation on a CPU finishes at once."""

PROBES = 8
"""Random directions that a residual is looked at along."""

EXACT_UP_TO = 32
"""Columns up to which a residual is computed in full instead."""

EIGENVALUE_STEPS = 24
"""Lanczos steps for an extreme eigenvalue."""


def in_double(x: Tensor) -> Tensor:
    """`x` in float64, moved to the CPU where its device has no float64."""
    if x.device.type == "mps":
        x = x.cpu()
    return x.to(torch.float64)


def product(a: Float[Tensor, "i j"], b: Float[Tensor, "j k"]) -> Float[Tensor, "i k"]:
    """a @ b, as (b^T a^T)^T where that is faster on a CPU: b is narrow, or one of them is stored by columns.

    Products of two matrices that are both stored by columns, as triangular solves leave them, take twice to twenty
    times as long as they should.
    """
    if a.is_contiguous() and b.is_contiguous() and b.shape[1] > EXACT_UP_TO:
        return a @ b
    return (b.T @ a.T).T


def add_gram(total: Float[Tensor, "k k"], x: Float[Tensor, "n k"]) -> None:
    """Add x^T x to the lower triangle of `total`, in place, for half the arithmetic; above it nothing is defined."""
    for start in range(0, len(total), BLOCK):
        end = min(start + BLOCK, len(total))
        total[start:end, :end].addmm_(x[:, start:end].T, x[:, :end])


def mirror(total: Float[Tensor, "k k"]) -> None:
    """Copy the lower triangle that `add_gram` has summed to the upper one, in place."""
    for start in range(BLOCK, len(total), BLOCK):
        end = min(start + BLOCK, len(total))
        total[:start, start:end] = total[start:end, :start].T


def gram(x: Float[Tensor, "n k"]) -> Float[Tensor, "k k"]:
    """x^T x."""
    total = x.new_zeros(x.shape[1], x.shape[1])
    add_gram(total, x)
    mirror(total)
    return total


def cholesky(matrix: Float[Tensor, "k k"]) -> tuple[Float[Tensor, "k k"], bool]:
    """The lower triangular L with L L^T = `matrix`, of which the lower triangle is read; and whether there is one.

    On a CPU panel by panel, everything below a diagonal block by matrix products, with the block's inverse: LAPACK's
    own takes a fifth to two thirds longer from a thousand columns on, for the same error where a block's own condition
    is not near 1 / eps, which it is in no matrix with a ridge (`Factor` looks at the others).
    """
    if matrix.device.type != "cpu" or len(matrix) <= 4 * PANEL:
        lower, failed = torch.linalg.cholesky_ex(matrix)
        return lower, bool(failed)
    lower, identity = torch.zeros_like(matrix), torch.eye(PANEL, dtype=matrix.dtype)
    for start in range(0, len(matrix), PANEL):
        end = min(start + PANEL, len(matrix))
        panel = torch.addmm(matrix[start:, start:end], lower[start:, :start], lower[start:end, :start].T, alpha=-1)
        block, failed = torch.linalg.cholesky_ex(panel[: end - start])
        lower[start:end, start:end] = block
        if failed:
            return lower, True
        if end < len(matrix):
            inverse = torch.linalg.solve_triangular(block, identity, upper=False)
            torch.mm(panel[end - start :], inverse.T, out=lower[end:, start:end])
    return lower, False


class Factor:
    """One factorisation of a symmetric positive definite matrix.

    Cholesky, or where rounding has made the matrix indefinite (a ridge far below float64's resolution of it) the
    eigendecomposition without the directions that rounding has wiped out: their eigenvalues are noise, and dividing
    by them would make a shift that solves the equation and is larger than the wanted one by orders of magnitude.
    """

    def __init__(self, matrix: Float[Tensor, "k k"]) -> None:
        self.matrix = matrix
        self._eigen: tuple[Tensor, Tensor] | None = None
        self._lower, failed = cholesky(matrix)
        if failed and bool(torch.isfinite(matrix).all()):
            values, vectors = torch.linalg.eigh(matrix)
            known = values > len(values) * torch.finfo(torch.float64).eps * values[-1]
            self._eigen = (values[known], vectors[:, known])

    @property
    def is_deficient(self) -> bool:
        """Whether rounding has wiped out directions, in which `solve` gives nothing."""
        return self._eigen is not None

    def inverse_diagonal(self, least: float) -> Float[Tensor, "k"]:
        """The diagonal of the inverse; directions that rounding has wiped out have `least` for an eigenvalue."""
        if self._eigen is not None:
            values, vectors = self._eigen
            shares = vectors.square()
            return (shares / values).sum(1) + (1 - shares.sum(1)).clamp(min=0) / least
        return self.solve(torch.eye(len(self.matrix), dtype=self.matrix.dtype, device=self.matrix.device)).diagonal()

    def solve(self, right: Float[Tensor, "k ..."]) -> Float[Tensor, "k ..."]:
        columns = right if right.ndim == 2 else right[:, None]
        if self._eigen is not None:
            values, vectors = self._eigen
            solved = vectors @ ((vectors.T @ columns) / values[:, None])
        else:
            # Two triangular solves are faster than torch.cholesky_solve, of one column ten times.
            solved = torch.linalg.solve_triangular(self._lower, columns, upper=False)
            solved = torch.linalg.solve_triangular(self._lower.T, solved, upper=True)
        return solved if right.ndim == 2 else solved[:, 0]


def probes(width: int, like: Tensor) -> Float[Tensor, "width k"]:
    """Z such that |E Z| estimates |E| (Frobenius norms) of any E with `width` columns, without making E.

    Up to `EXACT_UP_TO` columns Z is the identity. Past that it holds `PROBES` columns of random signs over their root,
    always the same ones: E|E Z|^2 = |E|^2 (Hutchinson 1990). An error in one column is measured exactly, since every
    sign is 1 or -1; the worst case is E of rank one spread over many columns, whose |E Z|^2 / |E|^2 is about a
    chi-square over its degrees of freedom: half too small or double now and then, ten times too small in one of 10^7.
    """
    if width <= EXACT_UP_TO:
        return torch.eye(width, dtype=like.dtype, device=like.device)
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, (width, PROBES), generator=generator).mul_(2).sub_(1)
    return signs.to(like) / PROBES**0.5


def largest_eigenvalue(apply: Callable[[Tensor], Tensor], like: Float[Tensor, "k k"]) -> float:
    """Of the symmetric positive definite map `apply` of vectors: by Lanczos from a fixed start, so from below."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(len(like), dtype=torch.float64, generator=generator).to(like.device)
    steps = min(EIGENVALUE_STEPS, len(like))
    basis = like.new_zeros(steps, len(like))
    projected = torch.zeros(steps, steps, dtype=torch.float64)
    basis[0] = x / x.norm()
    for step in range(steps):
        image = apply(basis[step])
        known = basis[: step + 1]
        projected[step, step] = float(basis[step] @ image)
        for _ in range(2):  # once more: what the first pass leaves of the earlier vectors is rounding
            image = image - known.T @ (known @ image)
        rest = float(image.norm())
        # Nothing is left where all of the start's eigenvectors are found; NaN ends here too.
        if step + 1 == steps or not rest > 1e-12 * float(projected.abs().max()):
            projected = projected[: step + 1, : step + 1]
            break
        projected[step + 1, step] = rest
        basis[step + 1] = image / rest
    if not bool(torch.isfinite(projected).all()):
        return float("nan")
    return float(torch.linalg.eigvalsh(projected)[-1])  # which reads the lower triangle
