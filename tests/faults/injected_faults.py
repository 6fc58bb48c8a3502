"""One fault at a time: a command under strace, killed before its K-th call of a name, or that call made to fail.

A command is recorded once. Its points are the calls by which it may change the state of the folder that it works in, or
make such changes durable. Killed on the entry of a call, that call has not happened: so a kill before each of them and
the run to the end are all that a kill can leave behind. A failing call does nothing either, and returns its error.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import malmen_cli
from malmen_cli.checkpoint.durable import TEMPORARY

Fault = Literal["SIGKILL", "ENOSPC", "EIO"]

CALLS = """
    write writev pwrite64 pwritev pwritev2 ftruncate truncate fallocate copy_file_range sendfile splice ioctl
    open openat openat2 creat rename renameat renameat2 unlink unlinkat mkdir mkdirat rmdir
    link linkat symlink symlinkat chmod fchmod fchmodat fchmodat2 chown fchown fchownat utimensat setxattr fsetxattr
    fsync fdatasync sync_file_range syncfs
"""
READS = """
    open openat read readv pread64 preadv getdents64 stat lstat fstat newfstatat statx readlink readlinkat flock
"""
STUCK_AFTER = 120.0  # seconds until a command counts as stuck and is killed

_CALL = re.compile(r"(\d+) +(\w+)\((.*)")
_PATH = re.compile(r'"(/[^"]*)"|<(/[^>]*)>')
_RANDOM = re.compile(re.escape(TEMPORARY) + "[0-9a-f]{16}")
_SLEEPER = (
    "import ctypes, time; ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1)); print(flush=True); time.sleep(60)"
)
_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Point:
    """A call that changes something, or one that reads: the `number`-th of its name, from 1.

    `text` is strace's line, `paths` are the paths in it, whatever the random part of their names.
    """

    call: str
    number: int
    text: str
    paths: tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status or minus the signal's number, its words, whether the fault struck there."""

    code: int
    words: str
    struck: bool = False


@cache
def why_not() -> str | None:
    """Why no fault can be injected here; None where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    sleeper = subprocess.Popen([sys.executable, "-IS", "-c", _SLEEPER], stdout=subprocess.PIPE)
    assert sleeper.stdout is not None
    sleeper.stdout.readline()
    try:
        options = ["-f", "-e", "trace=?fsync", "-e", "inject=?fsync:signal=SIGKILL:when=1", "-o", os.devnull]
        strace = _attach(sleeper.pid, options)
    except RuntimeError as error:
        return f"strace cannot attach here: {error}"
    finally:
        sleeper.kill()
        sleeper.wait()
        sleeper.stdout.close()
    _end(strace)
    return None


class Server:
    """An interpreter that forks commands; see fault_server.py. Close it."""

    def __init__(self, *, torch: bool = False) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MALMEN_")}
        paths = (Path(malmen_cli.__file__).parents[1], _HERE.parent, _HERE)
        kept |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        environment = kept | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, str(_HERE / "fault_server.py"), *(["--torch"] if torch else [])]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 0}
        self._process = subprocess.Popen(command, env=environment, cwd="/", **pipes)
        self._scratch = TemporaryDirectory()
        self._words = Path(self._scratch.name) / "words"
        self._trace = Path(self._scratch.name) / "trace"

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        self._scratch.cleanup()

    def run(self, case: str, folder: Path) -> Ended:
        """The command as it is."""
        return self._ended(case, folder, None)

    def record(self, case: str, folder: Path, *, reads: bool = False) -> tuple[Ended, list[Point]]:
        """The command as it is, and the points at which it could be struck, in order; or those at which it reads."""
        names = ",".join(f"?{call}" for call in (READS if reads else CALLS).split())
        ended = self._ended(case, folder, ["-y", "-s", "0", "-e", f"trace={names}"])
        points, processes = [], set()
        counted: Counter[tuple[str, str]] = Counter()
        for line in self._trace.read_text(errors="replace").splitlines():
            if found := _CALL.match(line):
                process, call, rest = found.groups()
                counted[process, call] += 1
                if _touches(rest, str(folder)) and _changes(call, rest) != reads:
                    processes.add(process)
                    points.append(Point(call, counted[process, call], line, _paths(rest)))
        assert len(processes) == 1, f"calls are counted by thread, and {len(processes)} of them change the folder"
        return ended, points

    def strike(self, case: str, folder: Path, point: Point, fault: Fault) -> Ended:
        """The command with one fault at one point."""
        what = f"signal={fault}" if fault == "SIGKILL" else f"error={fault}"
        injected = ["-e", f"trace={point.call}", "-e", f"inject={point.call}:{what}:when={point.number}"]
        ended = self._ended(case, folder, ["-y", "-s", "0", *injected])
        calls = [found for line in self._trace.read_text(errors="replace").splitlines() if (found := _CALL.match(line))]
        struck = [call for call in calls if "(INJECTED)" in call[3] or call[3].endswith("= ?")]  # ?: never returned
        return replace(ended, struck=any(_paths(call[3]) == point.paths for call in struck))

    def _ended(self, case: str, folder: Path, options: Sequence[str] | None) -> Ended:
        self._say(json.dumps({"case": case, "folder": str(folder), "words": str(self._words)}))
        child, strace = int(self._hear()), None
        if options is not None:
            strace = _attach(child, ["-f", *options, "-o", str(self._trace)])
        self._say("")
        try:
            code = int(self._hear())
        except TimeoutError:
            os.kill(child, signal.SIGKILL)
            self._hear()
            raise
        finally:
            if strace is not None:
                _end(strace)
        return Ended(code, self._words.read_text(errors="replace"))

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())

    def _hear(self) -> str:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], STUCK_AFTER)[0]:
            raise TimeoutError(f"a command took more than {STUCK_AFTER:.0f} s")
        line = bytes(self._process.stdout.readline()).decode()
        assert line, "the server died; its words are on stderr"
        return line


def _paths(arguments: str) -> tuple[str, ...]:
    """Absolute paths in a call's arguments, beside descriptors (-y) or as they are."""
    found = _PATH.findall(_RANDOM.sub(TEMPORARY, re.split(r"\) += ", arguments)[0]))
    return tuple(one or other for one, other in found)


def _touches(arguments: str, folder: str) -> bool:
    """Whether a call is about what lies in the folder. Paths stand beside descriptors (-y)."""
    return f"{folder}/" in arguments or f"{folder}>" in arguments or f'{folder}"' in arguments


def _changes(call: str, arguments: str) -> bool:
    """Whether a call may change something."""
    if call.startswith("open"):
        return "O_CREAT" in arguments or "O_TRUNC" in arguments
    return call in CALLS.split() and (call != "ioctl" or "FICLONE" in arguments)


def _attach(process: int, options: Sequence[str]) -> subprocess.Popen[bytes]:
    """Strace, attached: the process stops before it does anything more, and each call of it is seen from here on."""
    command = ["strace", "-p", str(process), *options]
    strace = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert strace.stderr is not None
    line = strace.stderr.readline().decode(errors="replace")
    if "attached" not in line:
        _end(strace)
        raise RuntimeError(line.strip()[-200:])
    return strace


def _end(strace: subprocess.Popen[bytes]) -> None:
    with suppress(subprocess.TimeoutExpired):  # it ends with what it traces
        strace.wait(10)
    if strace.returncode is None:
        strace.kill()
        strace.wait()
    assert strace.stderr is not None
    strace.stderr.close()
