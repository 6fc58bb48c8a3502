"""Tables of numbers in memory-mapped files: the page cache decides how much of them sits in memory."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from malmen_cli.checkpoint.durable import fsync_folder, fsync_path, in_words


def table(path: Path, rows: int, width: int, dtype: torch.dtype, *, there: bool = False) -> Tensor:
    """A (rows, width) tensor that lives in a file: a new one of zeros, or one that is there.

    Raises:
        MalmenError: the disk does not take it; or the file that should be there is not, or is of another size.
    """
    size = rows * width
    with in_words(path):
        if not there:
            _allocate(path, size * dtype.itemsize)
        elif path.is_symlink() or path.stat().st_size != size * dtype.itemsize:
            raise FileExistsError(f"{path} holds something else")
        try:
            return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(rows, width)
        except RuntimeError as error:  # how torch reports what the system refuses
            raise OSError(str(error)) from error


def _allocate(path: Path, size: int) -> None:
    """Make a file of so many bytes that are really there: a map into a hole of a full disk is a bus error, later."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if size and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


def flush(folder: Path) -> None:
    """Make what a folder's tables hold survive a power failure."""
    for path in folder.iterdir():
        fsync_path(path)
    fsync_folder(folder)
