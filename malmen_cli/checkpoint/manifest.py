"""A model folder as a manifest: every tensor, weight file, configuration and tokenizer file with its digest.

Law: `Manifest.from_json(manifest.to_json()) == manifest`, and two folders with one digest hold the same model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from malmen_cli.checkpoint.digests import (
    CHUNK,
    canonical_json,
    digest_bytes,
    digest_file,
    digest_ranges,
    is_digest,
    short,
    tag,
)
from malmen_cli.checkpoint.safetensors_file import (
    BITS,
    SafetensorsHeader,
    TensorSlot,
    bits_of,
    open_regular,
    read_header,
)
from malmen_cli.errors import UnsafeFile, UnsupportedModel, UsageError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
LARGEST_INDEX = 64 << 20  # bytes: some 600,000 tensors

# Papers beside the model: a corrected README does not make it another base, nor does what an export says of its origin.
_DOCUMENTATION = (".md", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf", "malmen.json")
_DOCUMENTATION_NAMES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "README")

# Data and records of work beside the model, which no loading looks at, and which grow: neither are they part of it.
_WORK = (".jsonl", ".csv", ".tsv", ".log")
_WORK_NAMES = (
    *("trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth"),
    *("all_results.json", "train_results.json", "eval_results.json", "predict_results.json"),
)

# What transformers looks for in a folder, whether or not it was there at first: one whole file wins over shards.
ADAPTER = "adapter_config.json"
_LOADED = (
    *(SINGLE, INDEX, ADAPTER, "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model"),
    *("spiece.model", "sentencepiece.bpe.model", "chat_template.jinja"),
)
TEMPLATES = "additional_chat_templates"
"""The one folder of a model that its tokenizer is saved with: the chat templates beside the default one."""


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor: the file it lies in, its dtype and shape, its byte range in that file, the digest of its bytes."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    digest: str


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One safetensors file: sizes in bytes, the digest of its header and of the whole file."""

    size: int
    header_size: int
    header_digest: str
    digest: str


class _Tensors(dict[str, TensorRecord]):
    def __missing__(self, name: str) -> TensorRecord:
        raise UnsafeFile(f"the model has no tensor {name!r}", remedy="run malmen verify")


@dataclass(frozen=True)
class Manifest:
    """What a model folder held when it was read. `others` are its remaining files but for documentation and what is
    only data (`_WORK`): at the top level, or a chat template, `additional_chat_templates/NAME`.

    Asking `tensors` for a name that the model has not raises UnsafeFile: names come from ledgers and editors.
    """

    tensors: dict[str, TensorRecord]
    weights: dict[str, WeightFile]
    others: dict[str, str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", _Tensors(self.tensors))

    def to_json(self) -> str:
        return canonical_json(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Raises UnsafeFile for anything `to_json` could not have written: a ledger may come from a stranger."""
        try:
            obj = json.loads(text)
            tensors = {name: _tensor_record(record) for name, record in obj["tensors"].items()}
            weights = {bare_name(name): _weight_file(record) for name, record in obj["weights"].items()}
            others = {_other_name(name): digest for name, digest in obj["others"].items()}
            for record in tensors.values():
                file = weights[record.file]
                if not 0 <= file.header_size <= record.start <= record.stop <= file.size:
                    raise ValueError("a tensor lies outside its file")
            digests = [record.digest for record in tensors.values()] + [*others.values()]
            digests += [digest for weight in weights.values() for digest in (weight.digest, weight.header_digest)]
            if not all(map(is_digest, digests)):
                raise ValueError("a digest is malformed")
            "".join(tensors).encode()  # names are text
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UnsafeFile(f"the stored manifest is damaged: {error}", remedy="run malmen verify") from error
        return cls(tensors, weights, others)

    @cached_property
    def digest(self) -> str:
        """The base digest: of the canonical JSON."""
        return digest_bytes(self.to_json().encode())

    @property
    def own_others(self) -> dict[str, str]:
        """`others` without what is only data, which manifests of before list too."""
        return {name: digest for name, digest in self.others.items() if not _is_work(name)}

    def slot(self, name: str) -> TensorSlot:
        """Where tensor `name` lies in its file. Raises UnsafeFile for a name that the model has not."""
        record = self.tensors[name]
        return TensorSlot(name, record.dtype, record.shape, record.start, record.stop)


def read_manifest(folder: Path) -> Manifest:
    """Read every byte of a model folder once.

    Raises UnsupportedModel where there are no safetensors weights, UnsafeFile for links, path-like shard names,
    malformed files and an index that does not agree with its shards, UsageError where there is no folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", remedy="name the folder of a model saved with save_pretrained")
    headers, shards = _weight_files(folder)
    tensors: dict[str, TensorRecord] = {}
    weights: dict[str, WeightFile] = {}
    for name in shards:
        header = headers[name]
        digest, tensor_digests = _digest_weights(folder / name, header)
        weights[name] = WeightFile(header.file_size, header.header_size, header.digest, digest)
        for slot in header.slots.values():
            record = TensorRecord(name, slot.dtype, slot.shape, slot.start, slot.stop, tensor_digests[slot.name])
            tensors[slot.name] = record
    others = {}
    for name in _other_files(folder):
        if name not in weights:
            with open_regular(folder / name):  # a link could not be exported: nobody knows whose file it leads to
                others[name] = digest_file(folder / name)
    return Manifest(tensors, weights, others)


def check_checkpoint(folder: Path, manifest: Manifest, state: Mapping[str, str]) -> list[str]:
    """What differs, in words, between a folder and its manifest with the digests of the edited tensors in `state`.

    A file that the manifest does not know is a difference where a model's loading would look at it. Reads every weight
    byte once; never writes, never raises for damage.
    """
    found, differences = tensor_digests(folder, manifest)
    for tensor, digest in found.items():
        record = manifest.tensors[tensor]
        expected = state.get(tensor, record.digest)
        if digest != expected:
            differences.append(
                f"tensor {tensor} in {record.file} was changed (is {short(digest)}, expected {short(expected)})"
            )
    return differences + other_differences(folder, manifest)


def listed(differences: Sequence[str], most: int = 5) -> str:
    """The first of some differences, and how many more there are, for an error's words."""
    more = len(differences) - most
    return "; ".join(differences[:most]) + (f"; and {more} more" if more > 0 else "")


def other_differences(folder: Path, manifest: Manifest) -> list[str]:
    """What differs, in words, of the files of a folder that hold no weights, and of which of them there are."""
    known = manifest.weights.keys() | manifest.others.keys()
    there = [name for name in _LOADED if os.path.lexists(folder / name)] + template_files(folder)
    added = [f"{name} was added" for name in there if name not in known]
    own = manifest.own_others
    changed = [words for name, digest in own.items() for words in _check_other(folder / name, name, digest)]
    return changed + added


def tensor_digests(folder: Path, manifest: Manifest) -> tuple[dict[str, str], list[str]]:
    """Digest of every tensor as it lies in a folder now, and in words the weight files that are not as they were.

    The tensors of a file with another size or header, or of none, have no digest. Never raises for damage.
    """
    found: dict[str, str] = {}
    differences = []
    for name, weights in manifest.weights.items():
        digests = _weights_now(folder / name, name, weights, manifest)
        if isinstance(digests, str):
            differences.append(digests)
        else:
            found |= digests
    return found, differences


def bare_name(name: str) -> str:
    """`name` if it is the plain name of a file in a folder; UnsafeFile for paths, `..`, hidden and control names."""
    if not is_bare(name):
        raise UnsafeFile(f"{name!r} is not a bare file name", remedy="shards must lie in the model's own folder")
    return name


def documentation_files(folder: Path) -> list[str]:
    """Names of the papers beside a model, which no manifest lists: plain files only, in order."""
    found = (path.name for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    return sorted(name for name in found if _is_documentation(name) and is_bare(name))


def require_weights(folder: Path) -> str:
    """The name of the file that a folder's weights begin at, the whole file before an index.

    Raises UnsupportedModel where there is neither, or an adapter, which would be loaded on top of some other model.
    """
    if os.path.lexists(folder / ADAPTER):
        raise UnsupportedModel(
            f"{folder} holds an adapter ({ADAPTER})", remedy="merge it into its base model, and save that"
        )
    for name in (SINGLE, INDEX):
        if (folder / name).exists() or (folder / name).is_symlink():
            return name
    raise UnsupportedModel(
        f"{folder} holds neither {SINGLE} nor {INDEX}",
        remedy="save the model with save_pretrained; of a folder with .bin weights, `malmen models add NAME FOLDER` "
        "makes a converted working copy",
    )


def _weight_files(folder: Path) -> tuple[dict[str, SafetensorsHeader], list[str]]:
    """Headers by file name, and the names in order. As transformers does, one whole file wins over an index."""
    if require_weights(folder) == SINGLE:
        return {SINGLE: read_header(folder / SINGLE)}, [SINGLE]
    weight_map = read_index(folder / INDEX, ".safetensors")
    shards = sorted(set(weight_map.values()))
    headers = {name: read_header(folder / name) for name in shards}
    found = [(tensor, name) for name in shards for tensor in headers[name].slots]
    if len(found) != len(weight_map) or dict(found) != weight_map:
        wrong = sorted({tensor for tensor, _ in set(found) ^ set(weight_map.items())}) or ["a tensor in two shards"]
        raise UnsafeFile(f"{INDEX} and the shards disagree about {wrong[0]!r}", remedy="save the model again")
    return headers, shards


def read_index(path: Path, suffix: str) -> dict[str, str]:
    """The shard of each tensor, by an index as transformers writes it.

    Raises UnsafeFile for a link, anything but an index, and shards that are no bare names or end otherwise.
    """
    with open_regular(path) as file:
        text = file.read(LARGEST_INDEX + 1)
    try:
        if len(text) > LARGEST_INDEX:
            raise ValueError("too large")
        weight_map = json.loads(text)["weight_map"]
        if not weight_map or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError("no weight map of texts")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UnsafeFile(f"{path} is not an index of shards ({error!r})", remedy="save the model again") from error
    for name in weight_map.values():
        if not bare_name(name).endswith(suffix):
            kind = suffix.removeprefix(".")
            raise UnsafeFile(f"{path} names the shard {name!r}", remedy=f"shards must be {kind} files")
    return dict(weight_map)


def _digest_weights(path: Path, header: SafetensorsHeader) -> tuple[str, dict[str, str]]:
    """Digest of the whole file and of each tensor, from one pass over its bytes."""
    whole = hashlib.sha256()
    digests = {}
    with open_regular(path) as file:
        for chunk in _chunks(file, header.header_size):
            whole.update(chunk)
        for slot in header.slots.values():
            part = hashlib.sha256()
            for chunk in _chunks(file, slot.length):
                whole.update(chunk)
                part.update(chunk)
            digests[slot.name] = tag(part.hexdigest())
        if file.read(1) or file.tell() != header.file_size:
            raise UnsafeFile(f"{path} changed while it was read", remedy="run the command again when nothing writes it")
    return tag(whole.hexdigest()), digests


def _chunks(file: BinaryIO, length: int) -> Iterator[bytes]:
    while length > 0 and (chunk := file.read(min(CHUNK, length))):
        length -= len(chunk)
        yield chunk


def _weights_now(path: Path, name: str, weights: WeightFile, manifest: Manifest) -> dict[str, str] | str:
    """Digests of one weight file's tensors, or what is wrong with the file."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
        if size != weights.size:
            return f"{name} has {size} bytes, expected {weights.size}"
        if digest_file(path, 0, weights.header_size) != weights.header_digest:
            return f"the header of {name} was changed"
        inside = {tensor: record for tensor, record in manifest.tensors.items() if record.file == name}
        digests = digest_ranges(path, [(record.start, record.stop - record.start) for record in inside.values()])
        return dict(zip(inside, digests, strict=True))
    except UnsafeFile as error:
        return error.message
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"


def _check_other(path: Path, name: str, digest: str) -> list[str]:
    try:
        if not path.is_file():
            return [f"{name} is missing"]
        found = digest_file(path)
    except OSError as error:
        return [f"{name} cannot be read ({error.strerror})"]
    return [] if found == digest else [f"{name} was changed (is {short(found)}, expected {short(digest)})"]


def _other_files(folder: Path) -> list[str]:
    found = (path.name for path in folder.iterdir() if not _is_ignored(path.name) and path.is_file())
    return sorted(found) + template_files(folder)


def template_files(folder: Path) -> list[str]:
    """Names of a model's further chat templates, from its folder on, in order; of no plain folder its own name."""
    templates = folder / TEMPLATES
    if not os.path.lexists(templates):
        return []
    if templates.is_symlink() or not templates.is_dir():
        return [TEMPLATES]
    return sorted(f"{TEMPLATES}/{path.name}" for path in templates.iterdir() if is_bare(path.name) and path.is_file())


def _other_name(name: str) -> str:
    folder, _, inner = name.rpartition("/")
    return name if folder == TEMPLATES and is_bare(inner) else bare_name(name)


def is_bare(name: str) -> bool:
    """Whether this is the plain name of a file in a folder, and not hidden."""
    if not name or name.startswith(".") or not name.isprintable() or any(mark in name for mark in "/\\:"):
        return False
    return len(name.encode()) <= 255  # no file system takes longer ones


def _is_ignored(name: str) -> bool:
    return _is_documentation(name) or _is_work(name) or not is_bare(name)


def _is_work(name: str) -> bool:
    return name.lower().endswith(_WORK) or name in _WORK_NAMES or name.startswith("events.out.tfevents.")


def _is_documentation(name: str) -> bool:
    return name.lower().endswith(_DOCUMENTATION) or Path(name).stem.upper() in _DOCUMENTATION_NAMES


def _tensor_record(record: dict[str, Any]) -> TensorRecord:
    found = TensorRecord(**{**record, "shape": tuple(record["shape"])})
    if found.dtype not in BITS or not all(type(size) is int for size in (found.start, found.stop, *found.shape)):
        raise ValueError("a tensor has an unknown dtype, or sizes that are no numbers")
    bits = 8 * (found.stop - found.start)
    if any(size < 0 for size in found.shape) or bits_of(found.shape, found.dtype, bits) != bits:
        raise ValueError("a tensor's shape is not that of its bytes")
    return found


def _weight_file(record: dict[str, Any]) -> WeightFile:
    found = WeightFile(**record)
    if type(found.size) is not int or type(found.header_size) is not int:
        raise ValueError("a file's size is no number")
    return found
