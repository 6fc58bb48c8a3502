"""Bringing a model into the local hub cache, for those who asked for it: what is there already is not fetched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from malmen_cli.checkpoint.durable import Need, require_space
from malmen_cli.errors import UnknownName, UsageError
from malmen_cli.facts import printable
from malmen_cli.language_models.hub_cache import Snapshot, find_snapshot, is_complete
from malmen_cli.language_models.hub_download import Download, Progress, fetch, find_download
from malmen_cli.ledger import Ledger, store
from malmen_cli.ledger.registration import check_name
from malmen_cli.operations.hub_models import is_model_name, name_for, unknown_model


@dataclass(frozen=True, slots=True)
class DownloadWatcher:
    """Who is told about a download: once before it begins, and as its bytes come."""

    begins: Callable[[Download], None] | None = None
    progress: Progress | None = None


def fetch_model(
    ledger: Ledger,
    source: str,
    *,
    name: str | None = None,
    revision: str | None = None,
    watcher: DownloadWatcher | None = None,
) -> Snapshot:
    """The model of a repository's id or known name from the hub cache; fetched where it is not there, or not whole.

    Args:
        name: what it will be registered as; by default what its first use would call it.
        revision: a branch, a tag or a commit; by default the one that the cache has, else main.

    Raises:
        UsageError: the name is taken, or downloads are forbidden. UnknownName: no such model or revision.
        UnsupportedModel: not one that malmen can edit. MalmenError: no access, no network, too little space.
    """
    if not is_model_name(source):
        raise unknown_model(source)
    found = cached(source, revision)
    if found is not None and is_complete(found.folder):
        return found
    _require_free(ledger, name or name_for(source))
    watcher = watcher or DownloadWatcher()
    download = find_download(source, revision)
    purpose = f"the download of {download.snapshot.repo}"
    require_space([Need(download.cache, tuple(download.files.values()), purpose)])
    if download.files and watcher.begins is not None:
        watcher.begins(download)
    fetch(download, watcher.progress)
    return download.snapshot


def cached(source: str, revision: str | None) -> Snapshot | None:
    """The model in the hub cache, whole or not; None too where nobody can say which of its revisions is meant."""
    try:
        return find_snapshot(source, revision)
    except UnknownName:
        return None


def cached_revision(source: str, revision: str) -> Snapshot:
    """A revision of a model in the hub cache.

    Raises:
        UnknownName: it is not there.
    """
    found = find_snapshot(source, revision)
    if found is None:
        shown = f"{printable(source)} --download --revision {printable(revision)}"
        raise UnknownName(
            f"revision {printable(revision)} of {printable(source)} is not in the local hub cache",
            remedy=f"fetch it: malmen models add NAME {shown}",
        )
    return found


def _require_free(ledger: Ledger, name: str) -> None:
    """A name that cannot be registered is refused before anything is fetched for it."""
    check_name(name)
    with ledger.read() as db:
        taken = name in {model.name for model in store.models(db)}
    if taken:
        raise UsageError(
            f"another model is registered as {name}", remedy="choose another name: malmen models add NAME SOURCE"
        )
