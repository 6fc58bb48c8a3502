"""Memory of the machine that this process may still use: what is free, what its limits leave, what it can give back."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")

BLOCK = 1 << 20
"""Bytes of a block that `large_blocks_apart` takes by itself."""

GLIBCS_OWN = 32 << 20
"""Bytes, the most that glibc raises the same limit to by itself."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def free_on_host(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes: memory that is available, with swap, but no more than control groups and the process's limits leave.

    Args:
        cgroups: where control groups are mounted. own: the file that names this process's.
    """
    import psutil

    swap = psutil.swap_memory()
    found = psutil.virtual_memory().available + swap.free
    limits = [found, *_left_by_cgroups(cgroups, own, swap.free), *_left_by_limits()]
    return max(0, min(limits))


def prefer_huge_pages() -> None:
    """Have torch ask Linux for pages of 2 MB under its blocks of that size and more; a user's own word counts.

    Such a block is there in a third of the time, and products of bfloat16 that stream a hyper-network's matrices take
    half: an apply in it takes a tenth less, in float32 a twentieth. torch reads the variable at its first allocation,
    so that whoever has used it before goes without.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def give_back_freed() -> None:
    """Give the system back what this process has freed and the C library keeps for later: some milliseconds.

    Batches of many shapes leave a hundred megabytes and more in glibc's heap, in gaps that the matrices of a solve do
    not fit into and would come on top of. Other C libraries keep less; with those nothing is done.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Have glibc take blocks of a megabyte and more from the system one by one, and give each back when it is freed.

    Matrices of a solve leave no gaps in the heap then that the next ones do not fit into. Fresh pages cost a solve
    nothing to speak of; batches of a model would take a fifth longer and more, so that afterwards all is as glibc
    itself would have it once a large block was freed.
    """
    _set_heap(BLOCK, BLOCK)
    try:
        yield
    finally:
        _set_heap(GLIBCS_OWN, 2 * GLIBCS_OWN)


def _set_heap(mapped: int, kept: int) -> None:
    """Bytes of a block that is mapped by itself, and those free at the heap's end that are given back."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, mapped)
        ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, kept)


def _left_by_cgroups(cgroups: Path, own: Path, swap: int) -> list[int]:
    """What each control group that this process is in leaves: version 2 of the interface, or version 1."""
    paths = [""]
    for line in _text(own).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" or "memory" in controllers.split(","):
            paths.append(path.strip("/"))
    left = []
    for path in paths:
        here = Path(path)
        for group in [here, *here.parents]:
            new, old = cgroups / group, cgroups / "memory" / group
            limit, used = _number(new / "memory.max"), _number(new / "memory.current")
            if limit is not None and used is not None:
                swap_limit, swapped = _number(new / "memory.swap.max"), _number(new / "memory.swap.current")
                more = swap if swap_limit is None else min(swap, max(0, swap_limit - (swapped or 0)))
                left.append(limit - used + _given_back(new / "memory.stat", "inactive_file", "active_file") + more)
            limit, used = _number(old / "memory.limit_in_bytes"), _number(old / "memory.usage_in_bytes")
            if limit is not None and used is not None:
                stat = _given_back(old / "memory.stat", "total_inactive_file", "total_active_file")
                left.append(limit - used + stat + swap)
    return left


def _given_back(path: Path, *names: str) -> int:
    """Bytes of cached files that count as used, and that the system takes back as soon as they are wanted."""
    pairs = [line.split() for line in _text(path).splitlines()]
    return sum(int(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] in names and pair[1].isdigit())


def _left_by_limits() -> list[int]:
    """What `ulimit -v` and `ulimit -d` leave, where they are set."""
    import psutil

    try:
        import resource
    except ImportError:  # a system without limits of this kind
        return []
    memory = psutil.Process().memory_info()
    used = {"RLIMIT_AS": memory.vms, "RLIMIT_DATA": getattr(memory, "data", None)}
    left = []
    for name, size in used.items():
        limit = resource.getrlimit(getattr(resource, name))[0] if hasattr(resource, name) else resource.RLIM_INFINITY
        if limit != resource.RLIM_INFINITY and size is not None:
            left.append(limit - size)
    return left


def _number(path: Path) -> int | None:
    """The number that a file holds; None where there is none, or no limit ("max")."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError):
        return ""
