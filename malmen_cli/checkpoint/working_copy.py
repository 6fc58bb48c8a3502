"""A working copy of a model that cannot be edited where it is: a hub cache's snapshot, or a folder of pickled weights.

A snapshot's files are links into the blobs folder beside it. The copy's weights are further names of the same blobs
where the file system allows that: malmen replaces files and never writes into one, so a blob is as safe as a copy.
Pickled weights are converted instead. Everything else is small, and people do edit a config.json in place: it is
copied.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from malmen_cli.checkpoint.durable import NO_LINK, Need, in_words, require_space
from malmen_cli.checkpoint.manifest import is_bare, require_weights, template_files
from malmen_cli.checkpoint.new_folder import new_folder
from malmen_cli.checkpoint.patch import copy_file
from malmen_cli.checkpoint.pickled_files import PICKLED_INDEX, PickledFiles, pickled_files
from malmen_cli.checkpoint.safetensors_file import open_regular
from malmen_cli.errors import UnsafeFile

WEIGHTS = ".safetensors"
OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".onnx", ".gguf", ".tflite", ".npz")
"""Weights of other formats and frameworks, which no copy needs."""

Converter = Callable[[PickledFiles], Callable[[Path], int]]
"""Looks at pickled weights, and gives what writes them into a folder as safetensors and returns the bytes written."""


def make_working_copy(snapshot: Path, blobs: Path, target: Path, converter: Converter | None = None) -> int:
    """Make `target` a model folder of plain files from a snapshot: whole and synced, or not there at all.

    Hidden files, folders but that of chat templates, and weights of other formats are left out. The snapshot and its
    blobs stay as they are.

    Args:
        snapshot: any folder; links in it may lead into `blobs` only.
        converter: is used where there are pickled weights and no safetensors, and called before anything is written.

    Returns:
        bytes of weights that had to be written: 0 where the file system let all of them be linked.

    Raises:
        UnsupportedModel: no weights. UnsafeFile: a link that leads out of `blobs`, or to no plain file.
        UsageError: `target` is there already and is not an empty folder. MalmenError: the disk does not take it. What
        `converter` raises.
    """
    resolved = partial(_resolved, blobs=blobs.resolve())
    pickled = pickled_files(snapshot, resolved) if converter is not None else None
    if converter is None or pickled is None:
        require_weights(snapshot)
        convert = None
    else:
        convert = converter(pickled)
    names = sorted(path.name for path in snapshot.iterdir() if _belongs(path)) + template_files(snapshot)
    files = {name: resolved(snapshot / name) for name in names if pickled is None or name != PICKLED_INDEX}
    sizes = [*_to_copy(files, target), *(pickled.sizes if pickled is not None else ())]
    require_space([Need(target, tuple(sizes), "a working copy")])
    copied = 0
    with new_folder(target) as part:
        for name, file in files.items():
            (part / name).parent.mkdir(exist_ok=True)
            if not name.endswith(WEIGHTS):
                _copy(file, part / name)
            elif not _link(file, part / name):
                require_space([Need(part, (file.stat().st_size,), "a copy of the weights")])
                copied += _copy(file, part / name)
        if convert is not None:
            copied += convert(part)
    return copied


def _to_copy(files: Mapping[str, Path], target: Path) -> Iterator[int]:
    """Sizes of the files that cannot be linked: the small ones never are, and no file on another disk can be."""
    there = next(path for path in target.absolute().parents if path.exists())
    for name, file in files.items():
        status = file.stat()
        if not name.endswith(WEIGHTS) or status.st_dev != there.stat().st_dev:
            yield status.st_size


def _belongs(path: Path) -> bool:
    return is_bare(path.name) and not path.name.lower().endswith(OTHER_WEIGHTS) and not path.is_dir()


def _resolved(path: Path, blobs: Path) -> Path:
    """The plain file behind a snapshot's entry: the entry itself, or the blob that it links to."""
    try:
        file = path.resolve(strict=True)
        regular = stat.S_ISREG(file.lstat().st_mode)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        raise UnsafeFile(f"{path} leads nowhere", remedy="fetch the model again: its download is incomplete") from error
    if path.is_symlink() and not _is_blob(file, blobs):
        raise UnsafeFile(f"{path} links to {file}, outside {blobs}", remedy="remove it, and ask where it came from")
    if not regular:
        raise UnsafeFile(f"{path} is not a regular file", remedy="fetch the model again")
    return file


def _is_blob(file: Path, blobs: Path) -> bool:
    """Whether a file is one of a repository's blobs, or of those that all repositories of its cache share.

    huggingface_hub 2 keeps what Xet has fetched once, in CACHE/blobs/xx/HASH, and links the repositories' blobs to it.
    """
    home = blobs.parent
    shared = home.name.startswith("models--") and file.parent.parent == home.parent / "blobs"
    return file.parent == blobs or (shared and len(file.parent.name) == 2)


def _link(source: Path, target: Path) -> bool:
    """Give the file another name; False where it lies on another disk or may not be linked."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINK:
            with in_words(target):
                raise
        return False
    return True


def _copy(source: Path, target: Path) -> int:
    """Copy a file's bytes; its mode is that of any new file."""
    with open_regular(source) as file, in_words(target):
        size = os.fstat(file.fileno()).st_size
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            copy_file(file.fileno(), descriptor, size)
        finally:
            os.close(descriptor)
    return size
