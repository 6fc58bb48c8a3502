"""An interpreter that has loaded malmen and forks commands from itself, each of which waits until strace is attached.

    python fault_server.py [--torch]

For every line of JSON, `{"case": name, "folder": path, "words": path}`, the child prints its pid; after the empty line
that follows it begins, and then its exit status is printed, or minus the number of the signal that killed it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fault_cases import CASES

from malmen_cli.cli import main as program
from malmen_cli.ledger import create_workspace

ANYBODY = ctypes.c_ulong(-1)  # PR_SET_PTRACER_ANY
PR_SET_PTRACER = 0x59616D61
VERBS = ("data", "gc", "init", "recover", "revert")
VERBS_THAT_COMPUTE = ("apply", "export", "models", "rebase", "train")


def traceable() -> None:
    """Let anybody trace this process, where the system would let only its parent."""
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ANYBODY, 0, 0, 0)  # fails where there is no such restriction


def load(torch: bool) -> None:
    """Everything that a command would import, so that a child does only what the command is about."""
    verbs = (*VERBS, *VERBS_THAT_COMPUTE) if torch else VERBS
    for verb in verbs:
        importlib.import_module(f"malmen_cli.cli.{verb}")
    if torch:
        importlib.import_module("transformers.models.gpt2.modeling_gpt2")
        for module in ("apply", "export", "models", "rebase", "revert", "train", "workbench"):
            importlib.import_module(f"malmen_cli.operations.{module}")
    with TemporaryDirectory() as folder:  # Alembic and its environment
        create_workspace(Path(folder))


def serve() -> None:
    for line in iter(sys.stdin.readline, ""):
        job = json.loads(line)
        ready, go = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(go)
            traceable()
            print(os.getpid(), flush=True)
            select.select([ready], [], [])  # no call of a name that is counted: strace may come during it or before
            os.close(ready)
            _be(job)
        os.close(ready)
        sys.stdin.readline()
        os.close(go)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _be(job: dict[str, Any]) -> None:
    """Run the command, its words into a file. Never returns."""
    code = 99
    try:
        words = os.open(job["words"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for target, descriptor in ((0, os.open(os.devnull, os.O_RDONLY)), (1, words), (2, words)):
            os.dup2(descriptor, target)
        CASES[job["case"]].run(Path(job["folder"]))
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except Exception as error:  # of a command that does not go through the program: told as the program tells it
        code = program._failed(error)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    load("--torch" in sys.argv)
    serve()
