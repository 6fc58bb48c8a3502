"""Models of the local hub cache, by repository id or by the short name people use. Nothing is downloaded here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from malmen_cli.errors import UnknownName
from malmen_cli.language_models.known_names import KNOWN_NAMES
from malmen_cli.language_models.offline import stay_offline

CONFIG = "config.json"
WEIGHTS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""Where a model's weights begin, a whole file or else an index of shards: the first pair that is there counts."""

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt")
"""Files one of which every tokenizer has."""

_PREFIX, _SNAPSHOTS, _BLOBS = "models--", "snapshots", "blobs"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One revision of a repository in a hub cache: a folder of links into the blobs that all revisions share."""

    repo: str
    revision: str
    folder: Path

    @property
    def blobs(self) -> Path:
        return self.folder.parent.parent / _BLOBS


def repositories(name: str) -> tuple[str, ...]:
    """The repository ids that a name may mean, in any spelling of a known one; the name itself for any other."""
    return KNOWN_NAMES.get(name.lower(), (name,))


def snapshot_of(folder: Path) -> Snapshot | None:
    """The snapshot whose folder this is (`.../models--org--name/snapshots/REVISION`); None for any other folder."""
    folder = folder.resolve()
    home = folder.parent.parent
    if folder.parent.name != _SNAPSHOTS or not home.name.startswith(_PREFIX):
        return None
    return Snapshot(home.name.removeprefix(_PREFIX).replace("--", "/"), folder.name, folder)


def find_snapshot(name: str, revision: str | None = None) -> Snapshot | None:
    """The model of this repository id or known name in the local hub cache; None where it is not there.

    The cache is where HF_HUB_CACHE or HF_HOME say. Of several revisions main counts, else the only one; with
    `revision` (a branch, a tag or a commit) that one alone.

    Raises:
        UnknownName: several revisions are there, and none of them is main.
    """
    stay_offline()
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    for repo in repositories(name):
        try:
            config = try_to_load_from_cache(repo, CONFIG, cache_dir=constants.HF_HUB_CACHE, revision=revision)
        except HFValidationError:  # cannot be a repository's id
            continue
        if isinstance(config, str):
            return snapshot_of(Path(config).parent)
        if revision is not None:
            continue
        home = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
        found = sorted(path.parent for path in (home / _SNAPSHOTS).glob(f"*/{CONFIG}"))
        if len(found) > 1:
            raise UnknownName(
                f"{len(found)} revisions of {repo} are in the local hub cache, and none of them is main",
                remedy=f"Name one by its folder: malmen models add NAME {found[0]}",
            )
        if found:
            return snapshot_of(found[0])
    return None


def is_complete(folder: Path) -> bool:
    """Whether a snapshot has all that a model needs; an interrupted download, or one of single files, may have less."""
    names = next((pair for pair in WEIGHTS if any((folder / name).exists() for name in pair)), None)
    if names is None or not any((folder / name).exists() for name in TOKENIZERS):
        return False
    whole, index = names
    try:
        return (folder / whole).exists() or all((folder / name).exists() for name in shards(folder / index))
    except (OSError, ValueError):
        return False


def shards(index: Path) -> list[str]:
    """The files that an index of shards (`model.safetensors.index.json`) names, sorted: weights, in the same folder.

    Raises:
        ValueError: it is no such index. OSError: it cannot be read.
    """
    kind = Path(index.name.removesuffix(".index.json")).suffix
    try:
        names = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"no index of shards: {error!r}") from error
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError("no index of shards: bare names of files are due")
    if not all(name.endswith(kind) for name in names):
        raise ValueError(f"no index of shards: {kind} files are due")
    return names
