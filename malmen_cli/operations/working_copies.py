"""Making a working copy and saying where it came from; pickled weights are converted on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from malmen_cli.checkpoint.digests import digest_file
from malmen_cli.checkpoint.manifest import is_bare
from malmen_cli.checkpoint.pickled_files import PickledFiles, pickled_start
from malmen_cli.checkpoint.working_copy import Converter, make_working_copy
from malmen_cli.facts import printable
from malmen_cli.language_models.hub_cache import Snapshot
from malmen_cli.ledger.connection import check_utf8


def copy_with_origin(source: Snapshot | Path, target: Path) -> dict[str, Any]:
    """Make `target` a working copy of a snapshot or a folder, and return its origin for the register entry.

    Raises:
        UnsupportedModel, UnsafeFile: it cannot be copied, converted, or loaded then. Whatever it is, nothing is left.
    """
    converted: list[dict[str, Any]] = []
    if isinstance(source, Snapshot):
        folder, blobs = source.folder, source.blobs
        shown = printable(str(folder), limit=None)
        origin: dict[str, Any] = {"repo": source.repo, "revision": source.revision, "snapshot": shown}
    else:
        folder = blobs = source.resolve()
        check_utf8(folder)
        origin = {"folder": str(folder)}
    make_working_copy(folder, blobs, target, _converter(folder, converted))
    return {**origin, "converted": converted} if converted else origin


def changed_files(folder: Path, converted: Sequence[dict[str, Any]]) -> list[str]:
    """Names of the pickled files that are not those a copy was converted from. One that looks untouched is not read."""
    return [record["file"] for record in converted if _is_changed(folder / record["file"], record)]


def note_about(name: str, copy: Path, origin: dict[str, Any]) -> str | None:
    """What people should know who have named a local folder, which otherwise is what is edited."""
    if "folder" not in origin:
        return None
    return (
        f"the weights in {printable(origin['folder'], limit=None)} are .bin files, which are not edited in place: "
        f"{name} is a copy of them as safetensors in {printable(str(copy), limit=None)}, and the folder stays as it is"
    )


def _converter(folder: Path, converted: list[dict[str, Any]]) -> Converter | None:
    """What converts the weights of a folder and fills in what they were; None where nothing is to be converted."""
    if pickled_start(folder) is None:
        return None

    def looked_at(pickled: PickledFiles) -> Callable[[Path], int]:
        # Only now, since they load torch.
        from malmen_cli.language_models.loading import refuse_absurd
        from malmen_cli.language_models.pickled_weights import check_pickled, convert_pickled, tied_names

        check_pickled(pickled)
        refuse_absurd(folder, sum(pickled.sizes))
        converted.extend(_record(name, path) for name, path in sorted(pickled.files.items()))
        return partial(convert_pickled, pickled, tied=tied_names(folder))

    return looked_at


def _record(name: str, path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"file": name, "digest": digest_file(path), "size": status.st_size, "modified_ns": status.st_mtime_ns}


def _is_changed(path: Path, record: dict[str, Any]) -> bool:
    if not is_bare(record["file"]):
        return True
    try:
        status = path.stat()
        if status.st_size != record["size"]:
            return True
        return status.st_mtime_ns != record["modified_ns"] and digest_file(path) != record["digest"]
    except OSError:
        return True
