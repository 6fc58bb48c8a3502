"""Commands on a real disk that is too small for them: a tmpfs of this process's own, with so many pages left.

    unshare -m python small_disk.py CASE PLACE STEP BEATEN FOLDER      (as any other user than root: unshare -rm)

Prints one JSON object: how many sizes were tried, how many of them were refused, and what went wrong. The mounts are
gone with the process. A disk is filled by one large file to where `free` pages are left, from none at all upwards,
until the command has succeeded three times in a row.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
from ledger_world import tiny
from recorded_commands import COMMANDS, real_world, workspace_in
from safetensors_folders import file_digests, safetensors_bytes, write_model_folder

import malmen_cli
from malmen_cli.errors import ExitCode, MalmenError
from malmen_cli.ledger import Ledger, store, verify_ledger, writing
from malmen_cli.ledger.collection import SCOPES, collectable

PAGE = 4096  # bytes: what a tmpfs allocates
ROOM = 64 << 20  # bytes of the disk before it is filled
LARGEST = 1024  # pages left with which every command must succeed
ENOUGH = 3  # successes in a row after which more room tells nothing new
PLACES = {"both": ".", "the checkpoint": "model", "the workspace": ".malmen"}
"""What lies on the small disk, as a path in the world's folder."""

Prepare = Callable[[Path], None]
Ended = Literal["done", "refused", "completed"]
Run = Callable[[Path], None]  # raises MalmenError where the command refuses


@dataclass
class Tried:
    """What came of all sizes.

    Attributes:
        refused: ended in an error in words. completed: of these, how many had come so far that the next command, with
        room again, completed them instead of withdrawing them. bad: one line for each broken promise.
    """

    sizes: int = 0
    refused: int = 0
    completed: int = 0
    largest_refused: int = 0  # pages left
    bad: list[str] = field(default_factory=list)


class Essence(NamedTuple):
    """What a world is like, without what differs from one run of a command to the next."""

    files: dict[str, str]
    entries: list[tuple[object, ...]]
    facts: list[str]
    models: int


class Case(NamedTuple):
    prepare: Prepare
    run: Run


# Commands ------------------------------------------------------------------------------------------------------------


def _recorded(name: str) -> Case:
    def run(folder: Path) -> None:
        for _ in COMMANDS[name].run(folder):
            pass

    return Case(COMMANDS[name].prepare, run)


def _malmen(prepared: str, *arguments: str) -> Case:
    """The program itself, in a process of its own."""

    def run(folder: Path) -> None:
        words = [argument.format(folder=folder) for argument in arguments]
        command = [sys.executable, "-m", "malmen_cli", *words, "--workspace", str(workspace_in(folder).root)]
        ended = subprocess.run(command, capture_output=True, text=True, env=_environment())
        if "Traceback" in ended.stderr:
            raise RuntimeError(ended.stderr[-500:])
        if ended.returncode not in (ExitCode.DONE, ExitCode.FACTS_FAILED_CHECK):
            message, _, remedy = ended.stderr.strip().rpartition("\n")
            raise MalmenError(message or ended.stderr, remedy=remedy)

    return Case(COMMANDS[prepared].prepare, run) if prepared in COMMANDS else Case(real_world, run)


def _environment() -> dict[str, str]:
    paths = [str(Path(malmen_cli.__file__).parents[1]), *sys.path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def _second_shard_larger(folder: Path) -> None:
    """The first shard's copy fits where the second one's does not: then the entry is half done."""

    def with_ballast(folder: Path, **kind: Any) -> Path:
        write_model_folder(folder, **kind)
        path, index = folder / "model-00002-of-00002.safetensors", folder / "model.safetensors.index.json"
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        tensors = {"ballast": ("U8", (10 * PAGE,), bytes(10 * PAGE))}
        for name, slot in json.loads(data[8:start]).items():
            begin, end = slot["data_offsets"]
            tensors[name] = (slot["dtype"], tuple(slot["shape"]), data[start + begin : start + end])
        path.write_bytes(safetensors_bytes(tensors))
        listed = json.loads(index.read_text())
        listed["weight_map"]["ballast"] = path.name
        index.write_text(json.dumps(listed))
        return folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ledger_world.write_model_folder", with_ballast)
        COMMANDS["apply, two shards"].prepare(folder)


CASES: dict[str, Case] = {
    "apply, the second shard larger": Case(_second_shard_larger, _recorded("apply, two shards").run),
    "apply, one file": _recorded("apply, one file"),
    "apply, two shards": _recorded("apply, two shards"),
    "revert to the base": _recorded("revert to the base"),
    "revert of an older entry": _recorded("revert of an older entry"),
    "register a model": _recorded("register a model"),
    "gc of everything": _recorded("gc of everything"),
    "malmen revert HEAD": _malmen("apply, two shards", "revert", "HEAD"),
    "malmen gc": _malmen("gc of everything", "gc", "--leftovers", "--training", "--states", "--editors", "--yes"),
    "malmen apply": _malmen("a real world", "apply", "{folder}/facts.jsonl", "--device", "cpu", "--sample", "0"),
}


# The disk ------------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(at: Path, contents: Path) -> Iterator[Path]:
    """A disk mounted at `at` that holds what `contents` does; yields the path of the file that fills it."""
    at.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM},nr_inodes=0,mode=700", "tmpfs", str(at)], check=True)
    try:
        shutil.copytree(contents, at, dirs_exist_ok=True, symlinks=True)
        yield at / ".everything-else"  # hidden: no file of the model's
    finally:
        subprocess.run(["umount", "-l", str(at)], check=True)


def fill(disk: Path, filler: Path, free: int) -> None:
    """Leave `free` pages of the disk."""
    filler.touch()
    status = os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, status.f_bavail - free) * status.f_frsize)
    assert os.statvfs(disk).f_bavail == free


# Trials --------------------------------------------------------------------------------------------------------------


def essence(folder: Path) -> Essence:
    """What the next command finds once it has settled; raises where anything is not sound."""
    with Ledger.open(workspace_in(folder), writing=True) as ledger:
        _settle(ledger)
        problems = verify_ledger(ledger).problems
        assert not problems, "; ".join(map(str, problems))
        with ledger.read() as db:
            entries = [tuple(row) for row in db.execute("SELECT number, kind, status, active_digest FROM entries")]
            facts = [str(row[0]) for row in db.execute("SELECT digest FROM facts ORDER BY digest")]
            models = len(store.models(db))
    return Essence(file_digests(folder / "model"), sorted(entries), facts, models)


def _settle(ledger: Ledger) -> None:
    with ledger.read() as db:
        registered = bool(store.models(db))
    if registered:
        with writing(ledger, tiny(ledger), "the next command"):
            pass


def try_sizes(case: Case, place: str, step: int, beaten: bool, home: Path) -> Tried:
    """All sizes of one command with one thing on the small disk.

    Args:
        step: pages between two sizes. beaten: the disk fills only after malmen has looked how much is free.
    """
    folder, saved, tried = home / "now", home / "saved", Tried()
    case.prepare(folder)
    folder.rename(saved)
    shutil.copytree(saved, folder)
    before = essence(folder)
    case.run(folder)
    after = essence(folder)
    disk, succeeded = folder / PLACES[place], 0
    while succeeded < ENOUGH:
        free = tried.sizes * step
        tried.sizes += 1
        shutil.rmtree(folder)
        shutil.copytree(saved, folder)
        shutil.rmtree(disk)
        with small_disk(disk, saved / PLACES[place]) as filler:
            fill(disk, filler, free)
            ended: Ended = "refused"
            try:
                ended = _attempt(case, folder, before, after, filler, beaten)
            except Exception as error:  # whatever it is: it should have been words, and nothing lost
                tried.bad.append(f"{free} pages left: {type(error).__name__}: {error}")
        refused = ended != "done"
        tried.refused += refused
        tried.completed += ended == "completed"
        tried.largest_refused = free if refused else tried.largest_refused
        succeeded = 0 if refused else succeeded + 1
        if tried.sizes * step > LARGEST:
            tried.bad.append("it never succeeded")
            break
    return tried


def _attempt(case: Case, folder: Path, before: Essence, after: Essence, filler: Path, beaten: bool) -> Ended:
    """One run. Then there is room again, and the same command must do what it would have done."""
    known = shutil.disk_usage
    if beaten:
        shutil.disk_usage = lambda path: known(path)._replace(free=1 << 40)  # type: ignore[assignment]
    refused = True
    try:
        case.run(folder)
        refused = False
    except MalmenError as error:
        assert error.message and error.remedy, "an error without words"
        # The next command meets the same full disk: it may refuse too, and must do no harm.
        with suppress(MalmenError), Ledger.open(workspace_in(folder), writing=True) as ledger:
            _settle(ledger)
    finally:
        shutil.disk_usage = known
    filler.unlink()
    found = essence(folder)
    if not refused:
        assert found == after, "it said that it was done, and it is not"
        return "done"
    assert found in (before, after), "it refused, and what is there is neither before nor after"
    completed = found == after and before != after
    if not completed:
        case.run(folder)
        assert essence(folder) == after, "with room again, the same command ends elsewhere"
    if case.run is CASES["gc of everything"].run:
        with Ledger.open(workspace_in(folder)) as ledger:
            assert collectable(ledger, SCOPES) == []
    return "completed" if completed else "refused"


def main(case: str, place: str, step: str, beaten: str, home: str) -> None:
    print(json.dumps(asdict(try_sizes(CASES[case], place, int(step), beaten == "beaten", Path(home).resolve()))))


if __name__ == "__main__":
    main(*sys.argv[1:])
