"""Every writing command on a real disk that is too small for it, mounted where the world lies, in a process of its own.

    unshare -m python small_disk_refusals.py HOME SAVED EDITOR PLACE STEP COMMAND...   (other users: unshare -rm)

The disk is filled to where so many pages are left, from none at all upwards, until the command has succeeded. Prints a
JSON list, one object per command. The mounts are gone with the process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from crafted_ledgers import pending
from refusal_world import RefusalWorld, differing_bytes, picture, run_program

from malmen_cli.errors import ExitCode

PAGE = 4096
ROOM = 16 << 20  # bytes of the disk before it is filled
AHEAD = "too little space on the disk: this needs "
SCRATCH = re.compile(r"ledger\.db|\.malmen\.lock")  # named where not even SQLite's scratch files or a lock fit


@dataclass
class Tried:
    """What came of all sizes.

    Attributes:
        refused_ahead: with numbers. not_begun: the ledger could not be opened, or no lock be taken.
        bytes_written: by all that were refused.
        needed: most pages left at which the command was still refused. bad: one line for each broken promise.
    """

    command: str
    sizes: int = 0
    refused_ahead: int = 0
    not_begun: int = 0
    bytes_written: int = 0
    needed: int = 0
    bad: list[str] = field(default_factory=list)


def try_sizes(world: RefusalWorld, disk: Path, command: str, step: int) -> Tried:
    tried = Tried(command)
    while True:
        free = tried.sizes * step
        tried.sizes += 1
        renew(world, disk)
        if command == "recover":
            pending(told=False, half=True)(world)
        fill(disk, free)
        before = picture(world.home)
        status, said = run(world, command)
        if status in (ExitCode.DONE, ExitCode.FACTS_FAILED_CHECK):
            return tried
        names, size = differing_bytes(before, picture(world.home))
        tried.needed, tried.bytes_written = free, tried.bytes_written + size
        if AHEAD in said:
            tried.refused_ahead += 1
        elif SCRATCH.search(said) and "unexpected" not in said:
            tried.not_begun += 1
        else:
            tried.bad.append(f"{command}, {free} pages left: {said}")
        if names:
            tried.bad.append(f"{command}, {free} pages left: changed {', '.join(names[:5])}: {said}")
        if free * PAGE > ROOM // 2:
            tried.bad.append(f"{command} never succeeded: {said}")
            return tried


def renew(world: RefusalWorld, disk: Path) -> None:
    for path in (*disk.iterdir(), *([] if disk == world.home else world.home.iterdir())):
        if path != disk:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.copytree(world.saved, world.home, symlinks=True, dirs_exist_ok=True)


def fill(disk: Path, free: int) -> None:
    """Leave `free` pages of the disk."""
    status = os.statvfs(disk)
    with (disk / "everything-else").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, status.f_bavail - free) * status.f_frsize)


def run(world: RefusalWorld, command: str) -> tuple[int, str]:
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        status = run_program(world.arguments(command))
    return status, err.getvalue()


def main(home: str, saved: str, editor: str, place: str, step: str, *commands: str) -> None:
    world = RefusalWorld(Path(home), Path(saved), "", editor)
    disk = world.home / place
    options = f"size={ROOM},nr_inodes=0,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)
    print(json.dumps([asdict(try_sizes(world, disk, command, int(step))) for command in commands]))


if __name__ == "__main__":
    main(*sys.argv[1:])
