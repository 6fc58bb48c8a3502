"""How fast this machine does what an apply is made of, measured in about a second; nothing is left on the disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from malmen_cli.editing.linear_algebra import cholesky
from malmen_cli.language_models.arithmetic import BlockRates
from malmen_cli.language_models.block_rates import block_rates, least
from malmen_cli.ledger.objects import ObjectStore
from malmen_cli.ledger.records import NewRows, RowSlice
from malmen_cli.ledger.row_files import RowFile, RowSpans
from malmen_cli.ledger.staged import StagedObject
from malmen_cli.operations.rows import RowReader
from malmen_cli.operations.tensors import DTYPES

WRITE_RATE = 200e6
"""Bytes per second that writing and syncing are reckoned with where they cannot be tried without writing there."""

SIDE, LARGE = 768, 1536
"""Rows and columns of the matrices that are timed; those of the one that must not fit a CPU's caches."""


@dataclass(frozen=True)
class Rates:
    """What an apply is reckoned with, all per second but `start`.

    Attributes:
        start: seconds until the libraries are loaded. model: of the language model's passes.
        single, double: floating-point operations of matrix products. factor: of Cholesky factorisations, float64 (a
            third of d^3 for a matrix of d columns). eigenvalues: of symmetric eigenvalues (four thirds of d^3).
        triangular: of solves with a triangular matrix, float64 (d^2 per column).
        sweep: bytes of a float64 matrix that is multiplied by one vector. copy: bytes copied to fresh memory.
        digest: bytes hashed. write: bytes written and synced. rows: stored rows of a fact at a layer that are read.
        texts: texts tokenised.
    """

    start: float
    model: BlockRates
    single: float
    double: float
    factor: float
    eigenvalues: float
    triangular: float
    sweep: float
    copy: float
    digest: float
    write: float
    rows: float
    texts: float


def measure(
    config: Any,
    dtype: torch.dtype,
    device: torch.device,
    layer: tuple[int, int],
    *,
    folder: Path,
    length: int,
    start: float,
    texts: float,
) -> Rates:
    """All of them, for a model of some configuration.

    Args:
        layer: (d_in, d_out) of an edited layer. folder: the workspace's. length: tokens of a text.
        start, texts: what only the caller can know.
    """
    return Rates(
        start=start,
        model=block_rates(config, dtype, device, length=max(4, length)),
        digest=digest_rate(),
        write=write_rate(folder),
        rows=row_rate(*layer, dtype),
        texts=texts,
        **matrix_rates(device),
    )


def matrix_rates(device: torch.device) -> dict[str, float]:
    """`single`, `double`, `factor`, `eigenvalues`, `triangular`, `sweep` and `copy` of `Rates`.

    Of a device without float64 the CPU's.
    """
    exact = torch.device("cpu") if device.type == "mps" else device
    wide = torch.full((SIDE, SIDE), 0.5, dtype=torch.float64, device=exact)
    wide.diagonal().add_(SIDE)
    narrow = wide.to(device=device, dtype=torch.float32)
    large = torch.full((LARGE, LARGE), 0.5, dtype=torch.float64, device=exact)
    operations = SIDE**3
    fresh = torch.zeros(33 << 20, dtype=torch.uint8)  # more than the C library keeps for the next one
    timed: dict[str, tuple[float, Callable[[], object], torch.device]] = {
        "single": (2 * operations, lambda: narrow @ narrow, device),
        "double": (2 * operations, lambda: wide @ wide, exact),
        "factor": (operations / 3, lambda: cholesky(wide), exact),
        "eigenvalues": (4 * operations / 3, lambda: torch.linalg.eigvalsh(wide), exact),
        "triangular": (operations, lambda: torch.linalg.solve_triangular(wide, wide, upper=False), exact),
        "sweep": (large.nbytes, lambda: large @ large[0], exact),
        "copy": (fresh.nbytes, fresh.clone, torch.device("cpu")),
    }
    return {name: size / least(call, where, 2) for name, (size, call, where) in timed.items()}


def digest_rate() -> float:
    """Bytes per second that one thread hashes."""
    data = bytes(8 << 20)
    return len(data) / least(lambda: hashlib.sha256(data).digest(), torch.device("cpu"), 2)


def row_rate(d_in: int, d_out: int, dtype: torch.dtype, facts: int = 256) -> float:
    """Stored rows per second that are read back, one per fact, of a file without a name."""
    names = {tensor_dtype: name for name, tensor_dtype in DTYPES.items()}
    spans = RowSpans([f"{fact:08}" for fact in range(facts)], [1] * facts)
    staged = StagedObject()
    try:
        file = RowFile(staged, facts, (names.get(dtype, "F32"), d_in), ("F32", d_out))
        file.write(0, bytes(facts * d_in * dtype.itemsize), bytes(facts * d_out * 4))
        packs = [NewRows("", staged, spans)]
        slices = [RowSlice(staged.digest, span.start, span.count) for span in spans]
        read = RowReader(ObjectStore(Path(tempfile.gettempdir())), packs)
        return facts / least(lambda: read.chunk(slices), torch.device("cpu"), 2)
    finally:
        staged.discard()


def write_rate(folder: Path, size: int = 16 << 20) -> float:
    """Bytes per second written and synced, of a file without a name in the system's folder for temporary files.

    Where that is on another disk than `folder`, or takes none, `WRITE_RATE`: a reading command writes nothing there.
    """
    data = bytes(size)
    try:
        if Path(tempfile.gettempdir()).stat().st_dev != folder.stat().st_dev:
            return WRITE_RATE
        best = float("inf")
        for _ in range(2):
            with tempfile.TemporaryFile() as file:
                started = time.perf_counter()
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                best = min(best, time.perf_counter() - started)
    except OSError:
        return WRITE_RATE
    return size / best
