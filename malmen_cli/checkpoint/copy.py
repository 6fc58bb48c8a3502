"""A whole model folder copied in one step, with the bytes of some tensors replaced on the way."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from malmen_cli.checkpoint.durable import Need, in_words, require_space, write_without_folder
from malmen_cli.checkpoint.manifest import Manifest, bare_name, check_checkpoint, documentation_files
from malmen_cli.checkpoint.new_folder import new_folder, refuse_existing
from malmen_cli.checkpoint.patch import TensorChange, changes_by_file, copy_file, overwrite
from malmen_cli.checkpoint.safetensors_file import TensorSlot, open_regular
from malmen_cli.errors import NOT_OURS, WrongBase

REPLACED = "base-"
"""Put before the name of a documentation file whose name `extra` takes."""


def copy_checkpoint(
    source: Path,
    manifest: Manifest,
    changes: Sequence[TensorChange],
    target: Path,
    extra: Mapping[str, bytes] = {},
    *,
    state: Mapping[str, str] = {},
) -> None:
    """Make `target` a copy of a model folder with `changes` in it: whole and synced, or not there at all.

    Every file of the manifest and the documentation beside them is copied, nothing hidden (so neither sidecar nor
    lock). What was copied is reread: `check_checkpoint(target, manifest, state | after)` finds no difference.

    Args:
        extra: further files by bare name; a README.md of the source that one replaces is kept as base-README.md.
        state: digests of tensors that differ from the manifest in `source` and are not in `changes`.

    Raises:
        UsageError: `target` is there already and is not an empty folder. WrongBase: the source is not what manifest,
        `before` and `state` say, with every difference. MalmenError: no space, or another error of the disk.
    """
    by_file = changes_by_file(manifest, changes)
    papers = documentation_files(source)
    names = [*manifest.weights, *manifest.own_others]
    refuse_existing(target)
    sizes = [_size(source / name) for name in [*names, *papers]] + [len(data) for data in extra.values()]
    require_space([Need(target, tuple(sizes), "the copy")])
    with new_folder(target) as part:
        for name in names:
            (part / name).parent.mkdir(exist_ok=True)
            _copy(source / name, part / name, by_file.get(name, ()))
        for name in papers:
            _copy(source / name, part / _name_in_copy(name, papers, extra), ())
        wanted = {**state, **{change.name: change.after for change in changes}}
        differences = check_checkpoint(part, manifest, wanted)
        if differences:
            raise WrongBase(
                f"{source} is not what the copy was to be made of: {'; '.join(differences[:5])}",
                remedy=NOT_OURS,
            )
        for name, data in extra.items():
            write_without_folder(part / bare_name(name), data)


def _name_in_copy(name: str, papers: Sequence[str], extra: Mapping[str, bytes]) -> str:
    """The name of a documentation file in the copy: its own, unless an extra file takes it."""
    if name in extra:
        name = f"{REPLACED}{name}"
        while name in papers or name in extra:
            name = f"{REPLACED}{name}"
    return name


def _copy(source: Path, target: Path, changes: Sequence[tuple[TensorChange, TensorSlot]]) -> None:
    """Copy one file and put the changes in; synced by the caller, with the mode that any new file would have."""
    with open_regular(source) as file, in_words(target):
        status = os.fstat(file.fileno())
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(target, flags, stat.S_IMODE(status.st_mode) & 0o777)
        try:
            copy_file(file.fileno(), descriptor, status.st_size)
            overwrite(target, descriptor, changes, named=source)
        finally:
            os.close(descriptor)


def _size(path: Path) -> int:
    with open_regular(path) as file:
        return os.fstat(file.fileno()).st_size
