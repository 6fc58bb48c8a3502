"""R2 on a real small disk: a command that does not fit ends in words with nothing changed, and is done once it fits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from ledger_world import FAST

import malmen_cli

TITLE = "R2: a real disk too small for the command, from no page left to more than enough"
OWN_MOUNTS = ["unshare", "-m" if os.geteuid() == 0 else "-rm"]
LEDGER = (
    "apply, one file",
    "apply, two shards",
    "apply, the second shard larger",
    "revert to the base",
    "revert of an older entry",
    "register a model",
)
HASTY = [  # what runs without --full, before malmen has looked and after it
    [(LEDGER[1], "both"), (LEDGER[4], "the checkpoint"), (LEDGER[5], "both")],
    [(LEDGER[1], "both"), (LEDGER[2], "the checkpoint")],
]


@cache
def why_not() -> str | None:
    """Why no disk can be mounted here; None where one can."""
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return "needs the commands unshare and mount"
    with TemporaryDirectory() as place:
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place]
        run = subprocess.run([*OWN_MOUNTS, *mount], capture_output=True, text=True)
    return None if run.returncode == 0 else f"cannot mount a disk here: {run.stderr.strip()[-200:]}"


pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def try_sizes(case: str, place: str, step: int, beaten: bool, figures: Callable[..., None]) -> None:
    paths = [str(Path(malmen_cli.__file__).parents[1]), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    script = str(Path(__file__).with_name("small_disk.py"))
    with TemporaryDirectory(dir=FAST) as home:
        command = [*OWN_MOUNTS, sys.executable, script, case, place, str(step), "beaten" if beaten else "", home]
        run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    bad = found.pop("bad")
    when = "after malmen has looked" if beaten else "before"
    figures(TITLE, command=case, on_the_disk=place, full=when, **found, bad=len(bad))
    assert not bad, "\n".join(bad[:20])
    assert found["refused"] or "gc" in case


@pytest.mark.parametrize("place", ["both", "the checkpoint", "the workspace"])
@pytest.mark.parametrize("case", LEDGER)
def test_a_small_disk(case: str, place: str, full: bool, figures: Callable[..., None]) -> None:
    if not full and (case, place) not in HASTY[0]:
        pytest.skip("one place of each command is enough in a hurry: --full")
    try_sizes(case, place, 1 if full else 7, False, figures)


@pytest.mark.parametrize("place", ["both", "the checkpoint", "the workspace"])
@pytest.mark.parametrize("case", LEDGER[:5])
def test_a_disk_that_fills_after_malmen_has_looked(
    case: str, place: str, full: bool, figures: Callable[..., None]
) -> None:
    if not full and (case, place) not in HASTY[1]:
        pytest.skip("one place of each command is enough in a hurry: --full")
    try_sizes(case, place, 1 if full else 3, True, figures)


@pytest.mark.parametrize("place", ["both", "the workspace"])
def test_gc_is_there_for_a_full_disk(place: str, full: bool, figures: Callable[..., None]) -> None:
    if not full and place != "both":
        pytest.skip("one place is enough in a hurry: --full")
    try_sizes("gc of everything", place, 1 if full else 7, False, figures)


@pytest.mark.parametrize("case", ["malmen revert HEAD", "malmen gc", "malmen apply"])
@pytest.mark.parametrize("place", ["both", "the checkpoint", "the workspace"])
def test_malmen_itself_on_a_small_disk(case: str, place: str, full: bool, figures: Callable[..., None]) -> None:
    if (case, place) == ("malmen gc", "the checkpoint"):
        pytest.skip("gc writes nothing to a checkpoint")
    if not full:
        pytest.skip("seconds for each size: --full")
    try_sizes(case, place, 12 if case == "malmen apply" else 4, False, figures)
