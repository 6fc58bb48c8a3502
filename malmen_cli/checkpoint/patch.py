"""Putting new bytes into a checkpoint: a copy of the shard beside it, patched, synced, renamed over it, read back.

`TensorChange` is the seam between the mathematics and the ledger: new bytes per tensor with the old and new digests.
Only byte ranges of known tensors change, so putting the old bytes back restores the file's own digest.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from malmen_cli.checkpoint.digests import CHUNK, digest_ranges, short
from malmen_cli.checkpoint.durable import (
    Need,
    begin_writing,
    fsync_folder,
    require_space,
    temporary_beside,
    write_all,
)
from malmen_cli.checkpoint.manifest import Manifest
from malmen_cli.checkpoint.safetensors_file import TensorSlot, open_regular
from malmen_cli.errors import NOT_OURS, UnsafeFile, VerificationFailed, WrongBase

PART = 8 << 20  # bytes that the kernel copies at a time, and the disk then begins to write
_FICLONE = 0x40049409  # Linux: share the extents of one file with another


@dataclass(frozen=True, slots=True)
class TensorChange:
    """New bytes for one tensor, as they lie in the file; `before` and `after` are digests of its bytes."""

    name: str
    before: str
    after: str
    data: bytes = field(repr=False)


def write_changes(folder: Path, manifest: Manifest, changes: Iterable[TensorChange]) -> None:
    """Patch every shard that the changes touch, one shard after another.

    One shard is replaced whole or not at all; several are not one atomic step, which the ledger's pending entry covers.
    Raises WrongBase where a tensor is not as its `before` says, MalmenError where the disk does not take the copy.
    """
    by_file = changes_by_file(manifest, changes)
    largest = max((manifest.weights[name].size for name in by_file), default=0)
    require_space([Need(folder, (largest,), "a copy of its largest file")])
    for name in sorted(by_file):
        patch_shard(folder / name, by_file[name])


def changes_by_file(
    manifest: Manifest, changes: Iterable[TensorChange]
) -> dict[str, list[tuple[TensorChange, TensorSlot]]]:
    """The changes with their tensors' places, by the file that holds them. Raises UnsafeFile for an unknown tensor."""
    by_file: dict[str, list[tuple[TensorChange, TensorSlot]]] = {}
    for change in changes:
        slot = manifest.slot(change.name)
        by_file.setdefault(manifest.tensors[change.name].file, []).append((change, slot))
    return by_file


def patch_shard(path: Path, changes: Sequence[tuple[TensorChange, TensorSlot]]) -> None:
    """Replace byte ranges of one safetensors file, keeping its mode and, where permitted, its owner.

    Every range is hashed in the copy before it is overwritten and in the renamed file afterwards. Raises WrongBase
    before the file is touched, VerificationFailed when it does not read back as written.
    """
    with open_regular(path) as source, temporary_beside(path, 0o600) as (temporary, target):
        status = os.fstat(source.fileno())
        copy_file(source.fileno(), target, status.st_size)
        overwrite(temporary, target, changes, named=path)
        if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
            _give_to(target, status)
        os.fchmod(target, stat.S_IMODE(status.st_mode))
        os.fsync(target)
        temporary.rename(path)
    fsync_folder(path.parent)
    written = digest_ranges(path, [(slot.start, slot.length) for _, slot in changes])
    for (change, _), found in zip(changes, written, strict=True):
        if found != change.after:
            raise VerificationFailed(
                f"tensor {change.name} in {path} does not read back as it was written",
                remedy="check the disk; the next writing command puts the bytes right from the ledger's objects",
            )


def _give_to(descriptor: int, status: os.stat_result) -> None:
    """Give a copy its original's owner and group, or the group alone, as far as that is permitted and they are known
    here: in a user namespace some are not."""
    for owner in (status.st_uid, -1):
        with suppress(OSError):
            os.fchown(descriptor, owner, status.st_gid)
            return


def overwrite(path: Path, descriptor: int, changes: Sequence[tuple[TensorChange, TensorSlot]], *, named: Path) -> None:
    """Put the changes into a fresh copy that lies at `path`, every range checked before the first one is written.

    `named` is the file that it is a copy of, for messages. Raises UnsafeFile where a change has another size than its
    tensor, WrongBase where a tensor is not as its change's `before` says.
    """
    for change, slot in changes:
        if len(change.data) != slot.length:
            raise UnsafeFile(
                f"tensor {change.name} takes {slot.length} bytes in {named.name}, not {len(change.data)}",
                remedy="the editor was made for another model; malmen editors are bound to one base",
            )
    copied = digest_ranges(path, [(slot.start, slot.length) for _, slot in changes])
    for (change, _), found in zip(changes, copied, strict=True):
        if found != change.before:
            raise WrongBase(
                f"tensor {change.name} in {named} is {short(found)}, expected {short(change.before)}",
                remedy=NOT_OURS,
            )
    for change, slot in changes:
        write_all(descriptor, change.data, slot.start)


def copy_file(source: int, target: int, size: int) -> None:
    """Copy between descriptors: shared extents where the file system has them, in the kernel, or by hand."""
    if sys.platform == "linux":
        import fcntl

        with suppress(OSError):
            fcntl.ioctl(target, _FICLONE, source)
            return
    done = _copy_in_kernel(source, target, size)
    while done < size:
        chunk = os.pread(source, min(CHUNK, size - done), done)
        if not chunk:
            raise OSError(errno.EIO, "the file became shorter while it was copied")
        write_all(target, chunk, done)
        begin_writing(target, done, len(chunk))
        done += len(chunk)


def _copy_in_kernel(source: int, target: int, size: int) -> int:
    """Bytes copied before the kernel would do no more; 0 where it cannot do this between these files."""
    done = 0
    if hasattr(os, "copy_file_range"):
        with suppress(OSError):
            while done < size and (copied := os.copy_file_range(source, target, min(PART, size - done), done, done)):
                begin_writing(target, done, copied)
                done += copied
    return done
