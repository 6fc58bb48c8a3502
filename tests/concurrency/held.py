"""Another process in the middle of its work: it stops where it is told to, says so, and goes on when it is let."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import malmen_cli

Stage = Literal["locked", "pending", "half"]
HERE = Path(__file__).resolve().parent

_WRITER = """
import contextlib, sys
from pathlib import Path
import ledger_world
from malmen_cli.checkpoint import patch
from malmen_cli.ledger import Ledger, Workspace, transactions

root, stage = Path(sys.argv[1]), sys.argv[2]
real_writing, real_write, real_patch = ledger_world.writing, transactions.write_changes, patch.patch_shard

def stop(here):
    if here == stage:
        print("here", flush=True)
        sys.stdin.readline()

@contextlib.contextmanager
def writing(ledger, model, command):
    with real_writing(ledger, model, "malmen apply theirs.jsonl") as settlement:
        stop("locked")
        yield settlement

def write(*arguments):
    stop("pending")
    real_write(*arguments)

def patched(*arguments):
    real_patch(*arguments)
    stop("half")

ledger_world.writing, transactions.write_changes, patch.patch_shard = writing, write, patched
with Ledger.open(Workspace(root), writing=True) as ledger:
    ledger_world.apply(ledger, ledger_world.fact("theirs"))
"""


class Writer:
    """A process that applies one fact, stopped at a stage: locked; its row pending; one shard of two new."""

    def __init__(self, root: Path, stage: Stage) -> None:
        places = (Path(malmen_cli.__file__).parents[1], HERE.parent)
        command = [sys.executable, "-c", _WRITER, str(root), stage]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places))}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "here\n"

    @property
    def pid(self) -> int:
        return self.process.pid

    def go_on(self) -> int:
        """Let it finish; its exit status."""
        self.process.communicate("\n\n", timeout=60)
        return self.process.returncode

    def kill(self) -> None:
        """Also of one that has ended already: its pipes are closed then."""
        self.process.kill()
        with self.process:
            pass


@contextmanager
def writer(root: Path, stage: Stage) -> Iterator[Writer]:
    stopped = Writer(root, stage)
    try:
        yield stopped
    finally:
        stopped.kill()
