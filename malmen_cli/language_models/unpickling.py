"""Pickled tensors read without running anything: `torch.load` with `weights_only`, and what it allows looked at again.

Whatever is wrong is said in words of our own: torch's would tell people to switch its protection off.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from malmen_cli.errors import MalmenError, UnsafeFile, UnsupportedModel
from malmen_cli.facts import printable

LARGEST_PICKLE = 64 << 20
"""Bytes of the part of a file that names its tensors: some 300,000 of them."""

MOST_SHARED = 8
"""How many times what a file stores its tensors may take together, shared memory counted as often as it is named."""

_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    *(torch.bool, torch.complex64),
}
_ZIP = b"PK\3\4"  # what torch.load itself tells the formats apart by
_ASKED_FOR = re.compile(r"GLOBAL ([\w.]+)")


def load_pickled(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors of a pickled file, on the CPU, mapped from the file where its format allows.

    Args:
        name: what the file is called in errors.

    Raises:
        UnsafeFile: it is cut short, damaged, asks for code, or is larger than it says. UnsupportedModel: what it holds
        is no table of plain tensors, by name.
    """
    size = path.stat().st_size
    mapped = _is_zip(path, name, size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # of a stranger's file that may be anything
        raise _unreadable(name, error) from None
    if not isinstance(found, dict) or not found:
        raise UnsupportedModel(f"{name} does not hold a state dict", remedy="save the model with save_pretrained")
    for key, value in found.items():
        _check(name, key, value)
    needed = sum(map(size_of, found.values()))
    if needed > MOST_SHARED * size:
        raise UnsafeFile(
            f"{name}: its tensors would take {needed:,} bytes, and the file has {size:,}",
            remedy="save the model again, or ask where it came from",
        )
    return dict(found)


def _is_zip(path: Path, name: str, size: int) -> bool:
    """Whether the file is of the zip format, whose tensors lie in it as they are; UnsafeFile for a packed archive."""
    try:
        with path.open("rb") as file:
            if file.read(len(_ZIP)) != _ZIP:
                return False
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _unreadable(name, error) from None
    # torch.save packs nothing; what is packed may unpack to anything.
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise UnsafeFile(f"{name} is compressed, which torch.save never does", remedy="save the model again")
    pickles = sum(member.file_size for member in members if member.filename.endswith(".pkl"))
    if pickles > LARGEST_PICKLE or sum(member.file_size for member in members) > size:
        raise UnsafeFile(f"{name} says more than it may", remedy="save the model again, or ask where it came from")
    return True


def _unreadable(name: str, error: Exception) -> MalmenError:
    asked = _ASKED_FOR.search(str(error))
    if asked is not None:
        return UnsafeFile(
            f"{name} asks for {printable(asked[1])}, which is not data; nothing of it was run",
            remedy="ask where it came from; a model that was saved with save_pretrained holds tensors alone",
        )
    if isinstance(error, OSError):
        return UnsafeFile(f"{name} cannot be read: {error.strerror or error}", remedy="check the file")
    return UnsafeFile(
        f"{name} cannot be read as weights that torch.save wrote: it is cut short, damaged, or something else",
        remedy="fetch or save the model again",
    )


def _check(name: str, key: object, value: object) -> None:
    if not isinstance(key, str) or not _is_name(key):
        raise UnsafeFile(f"{name}: the name of an entry cannot be a tensor's", remedy="save the model again")
    shown = printable(key)
    if isinstance(value, dict):
        raise UnsupportedModel(
            f"{name}: {shown!r} holds a dict: this is a training run's state around the weights, or an optimiser's",
            remedy="load it in the program that wrote it, and save the model with save_pretrained",
        )
    if not isinstance(value, Tensor):
        raise UnsupportedModel(
            f"{name}: {shown!r} is no tensor but of type {type(value).__name__}",
            remedy="save the model with save_pretrained",
        )
    if value.layout is not torch.strided or value.is_quantized or value.is_nested or value.device.type != "cpu":
        raise UnsupportedModel(
            f"{name}: {shown!r} is not a plain tensor (quantised, sparse or without values)",
            remedy="use the unquantised checkpoint, saved with save_pretrained",
        )
    if value.dtype not in _DTYPES:
        kind = str(value.dtype).removeprefix("torch.")
        raise UnsupportedModel(f"{name}: {shown!r} is {kind}, which safetensors has not", remedy="save it as float32")


def _is_name(key: str) -> bool:
    try:
        return b"\0" not in key.encode() and key != "__metadata__"  # which is safetensors' own
    except UnicodeEncodeError:
        return False


def size_of(tensor: Tensor) -> int:
    """Bytes that its values take."""
    return tensor.numel() * tensor.element_size()
