"""Fetching models from the hub into the local hub cache: the one place that asks the network, only when told to.

Fetched is what malmen reads and nothing else: no code, no other formats, no second copy of the weights. The cache is
huggingface_hub's own (HF_HOME, HF_HUB_CACHE), and so are its server and log-in (HF_ENDPOINT, HF_TOKEN).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malmen_cli.errors import UnsupportedModel
from malmen_cli.language_models.hub_cache import CONFIG, TOKENIZERS, WEIGHTS, Snapshot, repositories, shards
from malmen_cli.language_models.hub_errors import asking

Progress = Callable[[int, int], None]
"""Called with the bytes fetched and the bytes to fetch, from any thread."""

SMALL_FILES = (
    "generation_config.json",
    *TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""What is fetched beside config.json and the weights, as far as it is there."""

LARGEST_INDEX = 64 << 20
"""Bytes of an index of shards."""


@dataclass(frozen=True, slots=True)
class Download:
    """What is to be fetched of one revision of a repository.

    Attributes:
        snapshot: its place in the hub cache, where config.json is already.
        files: the other files that are wanted and not there, in the order they are fetched, and their bytes. The
            weights are the last ones, so that a snapshot with all weights has everything.
        cache: the hub cache's folder.
    """

    snapshot: Snapshot
    files: dict[str, int]
    cache: Path


@dataclass(frozen=True, slots=True)
class _Listed:
    """A file in a repository's listing: its bytes, and the name its blob has in the cache."""

    size: int
    blob: str


def find_download(name: str, revision: str | None = None) -> Download:
    """Ask the hub for a model, and fetch its config.json and, of weights in shards, their index.

    Args:
        name: a repository's id or a known name. revision: a branch, a tag or a commit; by default main.

    Raises:
        UnknownName: no such repository or revision. UnsupportedModel: nothing that malmen could edit. UsageError: the
        environment forbids downloads. MalmenError: no access, no network, no space.
    """
    repo = repositories(name)[0]
    with asking(repo, revision):
        commit, listed = _listing(repo, revision)
        if CONFIG not in listed:
            raise UnsupportedModel(
                f"{repo} has no {CONFIG}", remedy="Name a repository in the layout of transformers' save_pretrained."
            )
        folder = _fetch(repo, CONFIG, revision).parent  # by the branch's name, so that the cache knows the branch
        if folder.name != commit:  # the branch has moved between the two requests
            commit, listed = _listing(repo, folder.name)
    # Only now, since it loads torch.
    from malmen_cli.language_models.loading import read_config, task_of

    task_of(read_config(folder))  # refuses in words, before anything large is fetched
    with asking(repo, revision):
        wanted = [name for name in SMALL_FILES if name in listed] + _weights(repo, commit, listed)
    blobs = Snapshot(repo, commit, folder).blobs
    there = {name for name in wanted if (folder / name).exists() or (blobs / listed[name].blob).is_file()}
    missing = {name: 0 if name in there else listed[name].size for name in wanted if not (folder / name).exists()}
    return Download(Snapshot(repo, commit, folder), missing, folder.parents[2])


def fetch(download: Download, progress: Progress | None = None) -> None:
    """Fetch the files of a download, one after the other: what is there in the end is there whole.

    Raises:
        As `find_download`.
    """
    snapshot, total, done = download.snapshot, sum(download.files.values()), 0
    for name, size in download.files.items():
        with asking(snapshot.repo, snapshot.revision):
            _fetch(snapshot.repo, name, snapshot.revision, _reporting(progress, done, size, total))
        done += size
    if progress is not None:
        progress(total, total)


def _listing(repo: str, revision: str | None) -> tuple[str, dict[str, _Listed]]:
    """The commit that a revision is, and the files at its top."""
    from huggingface_hub import HfApi, constants

    info = HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT, files_metadata=True)
    listed = {}
    for file in info.siblings or ():
        lfs = file.lfs
        if "/" not in file.rfilename:
            blob = lfs.sha256 if lfs is not None else file.blob_id
            listed[file.rfilename] = _Listed((lfs.size if lfs is not None else file.size) or 0, blob or "unknown")
    return str(info.sha), listed


def _weights(repo: str, commit: str, listed: Mapping[str, _Listed]) -> list[str]:
    """Files of the weights: safetensors where there are any, else pickled ones; the index, which is fetched, first."""
    for whole, index in WEIGHTS:
        if whole in listed:
            return [whole]
        if index in listed:
            try:
                if listed[index].size > LARGEST_INDEX:
                    raise ValueError("too large")
                names = shards(_fetch(repo, index, commit))
            except ValueError as error:
                raise UnsupportedModel(f"{repo}: {index} is {error}", remedy="Ask its owners.") from error
            gone = [name for name in names if name not in listed]
            if gone:
                raise UnsupportedModel(f"{repo} lacks {gone[0]}, which {index} names", remedy="Ask its owners.")
            return [index, *names]
    known = " nor ".join(name for pair in WEIGHTS for name in pair)
    raise UnsupportedModel(
        f"{repo} holds no weights that malmen reads: neither {known}",
        remedy="Name the repository of the whole unquantised model.",
    )


def _fetch(repo: str, name: str, revision: str | None, bar: type | None = None) -> Path:
    from huggingface_hub import constants, hf_hub_download

    options: dict[str, Any] = {"cache_dir": constants.HF_HUB_CACHE, "tqdm_class": bar or _reporting(None, 0, 0, 0)}
    return Path(hf_hub_download(repo, name, revision=revision, **options))


def _reporting(progress: Progress | None, done: int, size: int, total: int) -> type:
    """What huggingface_hub takes for a class of progress bars: it shows nothing and reports a file's bytes."""
    # Not huggingface_hub's own, which transformers turns off for both of them.
    from tqdm import tqdm  # type: ignore[import-untyped]

    seen = 0

    class Reporting(tqdm):
        monitor_interval = 0  # no thread that watches over slow bars

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> bool:
            nonlocal seen
            # Of Xet's two bars, of what is received and what is written, the one that is ahead.
            seen = max(seen, min(int(self.n), size))
            if progress is not None:
                progress(done + seen, total)
            return True

    return Reporting
