"""An interpreter that has loaded malmen and forks commands from itself: processes without the seconds of their imports.

A job is a line of JSON on stdin, its result one on stdout. Run with `--torch` it has loaded torch and transformers too.
`Server` is its other end, for tests; `tiny_models.run_malmen` has one too.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import malmen_cli

HERE = Path(__file__).resolve().parent
CROWD = HERE / "concurrency"
STUCK_AFTER = 60.0  # seconds beyond a job's own time, until a process counts as stuck and is killed


def environment(*more: Path) -> dict[str, str]:
    """For subprocesses: this malmen, on one thread, in no workspace but the one that the command names.

    Args:
        more: further places to import from.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALMEN_", "PYTEST_CURRENT_"))}
    places = (Path(malmen_cli.__file__).parents[1], *more)
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, places))}


class Server:
    """Start it, `ask` it jobs, `close` it.

    Attributes:
        started_in: the `environment` of when it was started, some of which is read while modules are imported.
    """

    def __init__(self, *, torch: bool) -> None:
        self.started_in = environment()
        command = [sys.executable, __file__, *(["--torch"] if torch else [])]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(
            command, env=environment(HERE, CROWD) | {"TOKENIZERS_PARALLELISM": "false"}, **pipes
        )

    def ask(self, job: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"job": job, **arguments}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the server died; its words are on stderr"
        return json.loads(answer)

    def at_once(self, folder: Path, *commands: list[str], seconds: float = 60) -> list[dict[str, Any]]:
        """Run commands in `folder`, all at the same moment: exit status, standard output and error of each."""
        found = self.ask("at_once", commands=commands, folder=str(folder), seconds=seconds)
        assert isinstance(found, list)
        return found

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


# In the server itself -----------------------------------------------------------------------------------------------


def at_once(commands: list[list[str]], folder: str, seconds: float) -> list[dict[str, Any]]:
    ready, go = os.pipe()
    children = []
    with TemporaryDirectory() as words:
        for number, command in enumerate(commands):
            out, err = Path(words) / f"out-{number}", Path(words) / f"err-{number}"
            child = os.fork()
            if child == 0:
                os.close(go)
                os.read(ready, 1)  # ends for all at once, when the last writing end is closed
                _run(command, folder, out, err)
            children.append((child, out, err))
        os.close(ready)
        os.close(go)
        codes = wait_for({child for child, _, _ in children}, time.monotonic() + seconds + STUCK_AFTER)
        return [{"code": codes[child], "out": out.read_text(), "err": err.read_text()} for child, out, err in children]


def _run(command: list[str], folder: str, out: Path, err: Path) -> None:
    """Never returns."""
    code = 99
    try:
        os.chdir(folder)
        reading, writing = os.O_RDONLY, os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        for target, path, mode in ((0, os.devnull, reading), (1, out, writing), (2, err, writing)):
            descriptor = os.open(path, mode)
            os.dup2(descriptor, target)
            os.close(descriptor)
        sys.argv = ["malmen", *command]
        from malmen_cli.__main__ import main

        main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_for(children: set[int], deadline: float) -> dict[int, int]:
    """Exit statuses of all children, negative for a signal. One that lives on at the deadline is stuck, and killed."""
    codes: dict[int, int] = {}
    while children - codes.keys():
        for child in children - codes.keys():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                codes[child] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return codes


def _serve() -> None:
    import crowd

    # What is loaded here, all that are forked have.
    verbs = ["log", "show", "verify", "revert", "gc", "data", "models", "init", "recover"]
    modules = ["malmen_cli.cli.main", "malmen_cli.ledger.schema_upgrade", "malmen_cli.operations.revert"]
    if "--torch" in sys.argv:
        verbs += ["apply", "train", "plan", "eval", "export", "diff"]
        modules += ["malmen_cli.operations.apply", "malmen_cli.operations.train", "malmen_cli.operations.evaluation"]
    for module in [*modules, *(f"malmen_cli.cli.{verb}" for verb in verbs)]:
        importlib.import_module(module)
    if "--torch" in sys.argv:
        _load_a_model()
    jobs: dict[str, Any] = {"at_once": at_once, "crowd": crowd.run}
    for line in sys.stdin:
        job = json.loads(line)
        print(json.dumps(jobs[job.pop("job")](**job)), flush=True)


def _load_a_model() -> None:
    """Transformers imports most of itself only then."""
    import tiny_models

    with TemporaryDirectory() as folder:
        tiny_models.load(tiny_models.save_tiny_model(Path(folder) / "model"))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _serve()
