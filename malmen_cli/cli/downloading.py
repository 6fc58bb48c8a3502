"""What people see of a download on stderr: what it is, then how much of it is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from malmen_cli.cli.display import BarDisplay
from malmen_cli.cli.output import plural, say, size
from malmen_cli.ledger import Ledger

if TYPE_CHECKING:
    from malmen_cli.language_models.hub_cache import Snapshot
    from malmen_cli.language_models.hub_download import Download

_MB = 1_000_000


def fetcher(
    ledger: Ledger, bar: BarDisplay, *, quiet: bool, name: str | None = None, revision: str | None = None
) -> Callable[[str], Snapshot]:
    """Brings a model into the hub cache, by its repository's id or known name; `--quiet` shows nothing of it.

    Args:
        name, revision: as of `malmen_cli.operations.downloads.fetch_model`.
    """

    def fetch(source: str) -> Snapshot:
        # Only now, since it loads huggingface_hub.
        from malmen_cli.operations.downloads import DownloadWatcher, fetch_model

        watcher = DownloadWatcher() if quiet else DownloadWatcher(_begins, progress)
        return fetch_model(ledger, source, name=name, revision=revision, watcher=watcher)

    def progress(done: int, total: int) -> None:
        bar("downloading, MB", -(-done // _MB), -(-total // _MB))

    return fetch


def _begins(download: Download) -> None:
    say(
        f"Downloading {download.snapshot.repo} at {download.snapshot.revision[:10]}: "
        f"{plural(len(download.files), 'file')}, {size(sum(download.files.values()))}"
    )
