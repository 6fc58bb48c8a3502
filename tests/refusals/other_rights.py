"""Other rights than one's own: a user without any, and mounts that only one process sees."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import version

import pytest
from refusal_world import RefusalWorld

NOBODY = 65534
IS_ROOT = os.geteuid() == 0
OWN_MOUNTS = ["unshare", "-m" if IS_ROOT else "-rm"]


def forked(world: RefusalWorld, work: Callable[[], int]) -> tuple[int, str, str]:
    """What `work` returns and says in a process without root's rights, to which the world belongs."""
    if not _nobody_can_run():
        pytest.skip("the packages' folder is closed to other users, so that root's rights cannot be given up here")
    said = [world.home.parent / name for name in ("out.txt", "err.txt")]
    with said[0].open("w") as out, said[1].open("w") as err:
        child = os.fork()
        if child == 0:
            status = 99
            try:
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
                _give_up_rights()
                os.environ["HOME"] = str(world.home)
                status = work()
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)
        _, ended = os.waitpid(child, 0)
    texts = [path.read_text() for path in said]
    for path in said:
        path.unlink()
    return os.waitstatus_to_exitcode(ended), texts[0], texts[1]


@cache
def _nobody_can_run() -> bool:
    """Whether a process that has given up root's rights can still read the packages that it runs on."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _give_up_rights()
            version("transformers")
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def _give_up_rights() -> None:
    if IS_ROOT:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def give_away(world: RefusalWorld) -> None:
    if IS_ROOT:
        for path in (world.home, *world.home.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def can_mount() -> bool:
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return False
    return subprocess.run([*OWN_MOUNTS, "true"], capture_output=True).returncode == 0
