"""The normal equation alone, in float64, beside the arithmetic that it cannot do without.

    python tests/benchmarks/normal_equation.py
    python tests/benchmarks/normal_equation.py --repeated

Random float32 rows, d_out = d_in / 4, without and with preserved keys (m = d_in; C0 is there before the clock starts).
The floor is the cheaper form's counted arithmetic, in flops, over the rate of a float64 matrix product that is measured
just before each line in the same process. A symmetric product counts half and a factorisation a third:

    primal   n d^2 + 2 n d o + d^3 / 3 + 2 d^2 o;    gradients besides  2 d^2 o + 2 n d o
    kernel   n^2 d + n^3 / 3 + 2 n^2 o + 2 n d o;    gradients besides  2 n d o + 2 n^2 o

With these preserved keys the kernel form has n + d_in rows and is never the cheaper one. Fewer rows than d_out beside
them are solved for n columns of A^-1 instead of d_out, which can stay below the floor. Gradients are those of value
differences, log lambda and log alpha; the arithmetic of the last two is not in the floor. Seconds are of this process's
processor time where it has one thread (other work on the machine then disturbs less), else of the clock; minima of
repeats while these are short.

`--repeated` times what training does: many solves of few rows with the same preserved keys, each with its gradients,
in every form that can be had, and says what the eigenvectors cost once.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from malmen_cli.editing.normal_equation import Form, NormalEquation, PreservedKeys, Solution
from malmen_cli.language_models.host_memory import prefer_huge_pages

SHAPES = (1024, 2048, 4096, 8192)
ROWS = (256, 1024, 4096, 16384)
REPEATED_SHAPES = ((1024, 256), (3072, 768))
REPEATED_ROWS = (1, 16, 64, 256, 1024)
CHUNK = 1024  # rows, as an apply feeds them


def now() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(work: Callable[[], object], budget: float) -> float:
    """The shortest run of a few: as many as fit into `budget` seconds, one at least and five at most."""
    best, spent, runs = float("inf"), 0.0, 0
    while not runs or (runs < 5 and spent + best <= budget):
        start = now()
        work()
        took = now() - start
        best, spent, runs = min(best, took), spent + took, runs + 1
    return best


def matrix_rate(size: int = 2048) -> float:
    """Flops per second of a float64 matrix product."""
    a = torch.ones(size, size, dtype=torch.float64)
    return 2 * size**3 / seconds(lambda: a @ a, 2.0)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def preserved_keys(d: int) -> PreservedKeys:
    """d_in rows, as more are compressed to; C0 made."""
    preserved = PreservedKeys(random(d, d, seed=9))
    _ = preserved.second_moment
    return preserved


class Case:
    """One shape's solve, forward and with its gradients."""

    def __init__(
        self, d: int, o: int, n: int, preserved: PreservedKeys | None, form: Form | None = None, repeated: bool = False
    ) -> None:
        self.keys, self.diffs, self.grads = random(n, d), random(n, o, seed=1), random(d, o, seed=2)
        self.make = lambda: NormalEquation(d, o, preserved=preserved, form=form, repeated=repeated)
        self.strength = 0.0 if preserved is None else 10.0

    def forward(self) -> Solution:
        equation = self.make()
        for keys, diffs in zip(self.keys.split(CHUNK), self.diffs.split(CHUNK), strict=True):
            equation.update(keys, diffs)
        return equation.solve(ridge=10.0, preserved_strength=self.strength)

    def gradients(self) -> object:
        return self.forward().gradients(self.keys, self.grads)


def floors(d: int, o: int, n: int, preserved: bool) -> tuple[float, float]:
    """Flops of the cheaper form: forward, and with the gradients."""
    primal = n * d * d + 2 * n * d * o + d**3 / 3 + 2 * d * d * o
    primal_both = primal + 2 * d * d * o + 2 * n * d * o
    kernel = n * n * d + n**3 / 3 + 2 * n * n * o + 2 * n * d * o
    kernel_both = kernel + 2 * n * d * o + 2 * n * n * o
    return (primal, primal_both) if preserved else (min(primal, kernel), min(primal_both, kernel_both))


def single_solves(shapes: list[int], most_rows: int) -> None:
    print("| d_in | d_out | rows | preserved | form | solve s | x floor | with gradients s | x floor | GFLOP/s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for d in shapes:
        for preserved in (None, preserved_keys(d)):
            for n in ROWS:
                # What takes minutes is left out: rows past d_in cost the same each.
                if n > most_rows or n * d * d > 3e11:
                    continue
                case = Case(d, d // 4, n, preserved)
                rate = matrix_rate()
                floor, both_floor = (flops / rate for flops in floors(d, d // 4, n, preserved is not None))
                form = case.forward().form if floor < 1 else "primal" if n >= d or preserved else "kernel"
                forward, both = seconds(case.forward, 1.0), seconds(case.gradients, 1.0)
                print(
                    f"| {d:,} | {d // 4:,} | {n:,} | {'yes' if preserved else 'no'} | {form} | {forward:.3g} | "
                    f"{forward / floor:.2f} | {both:.3g} | {both / both_floor:.2f} | {rate / 1e9:.0f} |",
                    flush=True,
                )


def repeated_solves() -> None:
    print("| d_in | d_out | rows | picked | picked s | primal s | spectral s | kernel s |")
    print("|---|---|---|---|---|---|---|---|")
    for d, o in REPEATED_SHAPES:
        preserved = preserved_keys(d)
        start = now()
        _ = preserved.spectrum
        once = now() - start
        for n in REPEATED_ROWS:
            picked = Case(d, o, n, preserved, repeated=True)
            cells = [f"{d:,}", f"{o:,}", f"{n:,}", picked.forward().form, f"{seconds(picked.gradients, 1.0):.3g}"]
            forms: tuple[Form, ...] = ("primal", "spectral", "kernel")
            cells += [f"{seconds(Case(d, o, n, preserved, form).gradients, 1.0):.3g}" for form in forms]
            print(f"| {' | '.join(cells)} |", flush=True)
        print(f"\nEigenvectors at {d:,}, once: {once:.3g} s\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeated", action="store_true", help="many small solves with the same preserved keys")
    parser.add_argument("--shapes", type=int, nargs="*", default=list(SHAPES), help="d_in")
    parser.add_argument("--rows", type=int, default=max(ROWS), help="leave out more rows than this")
    options = parser.parse_args()
    prefer_huge_pages()
    torch.set_num_threads(1)
    if options.repeated:
        repeated_solves()
    else:
        single_solves(options.shapes, options.rows)


if __name__ == "__main__":
    main()
