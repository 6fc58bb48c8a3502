"""Pickled weights turned into safetensors: the same tensors, proved equal bit for bit.

Covered: `torch.save`'s zip and older format, one file or shards, tensors that share memory, lie apart in it or are
views into more of it, every dtype that safetensors has. Not covered, and refused in words: anything that is no tensor,
sparse and quantised tensors, and whatever a pickle asks for that is not data: `torch.load` runs with `weights_only`
alone.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from malmen_cli.checkpoint.digests import canonical_json
from malmen_cli.checkpoint.durable import Need, in_words, require_space, write_without_folder
from malmen_cli.checkpoint.manifest import INDEX, SINGLE
from malmen_cli.checkpoint.pickled_files import PickledFiles
from malmen_cli.errors import UnsafeFile, VerificationFailed
from malmen_cli.facts import printable
from malmen_cli.language_models.loading import empty_model, read_config
from malmen_cli.language_models.unpickling import load_pickled, size_of


def tied_names(folder: Path) -> dict[str, str]:
    """Tensor -> the tensor that it is one with and that is kept of the two, by the folder's config.json.

    For instance `{"lm_head.weight": "transformer.wte.weight"}`. The model is built without memory for its weights.

    Raises:
        UnsupportedModel: transformers cannot build it.
    """
    model = empty_model(folder, read_config(folder))
    return dict(getattr(model, "all_tied_weights_keys", {}))


def check_pickled(pickled: PickledFiles) -> None:
    """Read every file's list of tensors, and write nothing: what would stop a conversion halfway.

    Raises:
        UnsafeFile, UnsupportedModel: as `convert_pickled`.
    """
    for name in pickled.files:
        _read(pickled, name)


def convert_pickled(pickled: PickledFiles, folder: Path, tied: Mapping[str, str] = {}) -> int:
    """Write pickled weights into `folder` as safetensors, file by file, read them back and compare every bit.

    The same weights give the same bytes. Files are not synced, and what an error leaves in `folder` is the caller's to
    remove.

    Args:
        tied: `tied_names`. Of two that are one tensor in the file only the one to keep is written, as `save_pretrained`
            does; transformers ties them again. Other shared memory is written as often as it is named.

    Returns:
        bytes written.

    Raises:
        UnsafeFile: a file is cut short, damaged, asks for code or disagrees with its index. UnsupportedModel: what it
        holds are not plain tensors. VerificationFailed: what was written is not what was read. MalmenError: no space.
    """
    places: dict[str, str] = {}
    total = 0
    for number, name in enumerate(sorted(pickled.files), 1):
        shard = f"model-{number:05}-of-{len(pickled.files):05}.safetensors"
        file = folder / (SINGLE if pickled.weight_map is None else shard)
        sizes = _convert_file(pickled, name, file, tied)
        places |= dict.fromkeys(sizes, file.name)
        total += sum(sizes.values())
    if pickled.weight_map is not None:
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_without_folder(folder / INDEX, canonical_json(index).encode())
    return sum((folder / name).stat().st_size for name in set(places.values()))


def _convert_file(pickled: PickledFiles, name: str, file: Path, tied: Mapping[str, str]) -> dict[str, int]:
    """Convert one file, and return the bytes of each tensor written. Nothing of it stays in memory."""
    tensors = _read(pickled, name)
    copies = _copies(tensors, tied)
    kept = {key: tensor for key, tensor in tensors.items() if key not in copies}
    _write(file, kept)
    _prove(file, name, tensors, copies)
    return {key: size_of(tensor) for key, tensor in kept.items()}


def _read(pickled: PickledFiles, name: str) -> dict[str, Tensor]:
    """The tensors of one file, which are those that the index says."""
    tensors = load_pickled(pickled.files[name], name)
    if pickled.weight_map is not None:
        expected = {tensor for tensor, shard in pickled.weight_map.items() if shard == name}
        wrong = sorted(expected ^ tensors.keys())
        if wrong:
            raise UnsafeFile(
                f"the index and {name} disagree about {printable(wrong[0])!r}", remedy="fetch or save the model again"
            )
    return tensors


def _copies(tensors: Mapping[str, Tensor], tied: Mapping[str, str]) -> dict[str, str]:
    """Of tied names that are one tensor in this file, those that need not be written, and where their values are."""
    return {
        copy: source
        for copy, source in tied.items()
        if copy in tensors and source in tensors and source not in tied and _are_one(tensors[copy], tensors[source])
    }


def _are_one(a: Tensor, b: Tensor) -> bool:
    same_memory = a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
    return same_memory and a.shape == b.shape and a.dtype == b.dtype


def _write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file with the mode of any new file."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    require_space([Need(file.parent, (sum(map(size_of, tensors.values())),), "the converted weights")])
    written: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
        # The format has no shared memory.
        written[name] = plain.clone() if place in seen and plain.data_ptr() == tensor.data_ptr() else plain
        seen.add(place)
    with in_words(file):
        try:
            save_file(written, file, metadata={"format": "pt"})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        # The library writes for the owner alone; a new folder's mode knows the umask.
        file.chmod(stat.S_IMODE(file.parent.stat().st_mode) & 0o666)


def _prove(file: Path, name: str, tensors: Mapping[str, Tensor], copies: Mapping[str, str]) -> None:
    """Read every tensor back and compare dtype, shape and bits, those of a NaN too."""
    from safetensors import SafetensorError, safe_open

    problem = None
    try:
        with safe_open(file, framework="pt") as written:
            for key, tensor in tensors.items():
                if not _are_equal(written.get_tensor(copies.get(key, key)), tensor):
                    problem = f"{printable(key)!r} is another"
                    break
            if len(written.keys()) != len(tensors) - len(copies):
                problem = "there are more tensors"
    except SafetensorError as error:
        problem = printable(str(error))
    if problem is not None:
        raise VerificationFailed(
            f"what was written is not what {name} holds: {problem}",
            remedy="check the disk and the memory of this machine, then run the command again; nothing was changed",
        )


def _are_equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))


def _bits(tensor: Tensor) -> Tensor:
    """A tensor's bytes, row-major."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
