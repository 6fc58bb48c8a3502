"""Ctrl-C, SIGTERM and SIGHUP, really sent: one line, status 130, and a state that is settled or can be recovered."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pseudo_terminal import CTRL_C, PseudoTerminal
from tiny_models import World, environment, make_facts, make_world, run_malmen, start_malmen, write_facts

from malmen_cli.checkpoint.lock import LOCK_NAME
from malmen_cli.errors import ExitCode

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LINE = "malmen: interrupted ({}); the next command settles whatever was under way\n"


@pytest.fixture(scope="module", autouse=True)
def signals_arrive() -> Iterator[None]:
    """Under nohup, or in the background of a script, signals are ignored, and commands would inherit that."""
    ignored = {number: kept for number in SIGNALS if (kept := signal.getsignal(number)) is signal.SIG_IGN}
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, kept in ignored.items():
        signal.signal(number, kept)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    world = make_world(folder)
    write_facts(folder / "few.jsonl", make_facts(3))
    write_facts(folder / "many.jsonl", [replace(fact, rephrases=(), unrelated=()) for fact in make_facts(4000)])
    write_facts(folder / "training.jsonl", make_facts(40, start=4000 - 40))
    return world


def wait_until(done: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert process.poll() is None, f"ended with {process.returncode}: {process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def catches_signals(process: subprocess.Popen[str]) -> bool:
    """Whether the process has a handler for SIGTERM by now."""
    words = dict(line.split(":", 1) for line in proc(process, "status").splitlines())
    return bool(int(words.get("SigCgt", "0"), 16) >> (signal.SIGTERM - 1) & 1)


def imports_torch(process: subprocess.Popen[str]) -> bool:
    return "libtorch" in proc(process, "maps")


def proc(process: subprocess.Popen[str], name: str) -> str:
    try:
        return Path(f"/proc/{process.pid}/{name}").read_text("utf-8", "replace")
    except OSError:
        return ""


def apply_many(world: World) -> subprocess.Popen[str]:
    # So few tokens at once that it takes its time.
    return start_malmen(
        world, "apply", world.checkpoint.parent / "many.jsonl", "--batch-tokens", "16", "--device", "cpu"
    )


def head(world: World) -> str:
    return run_malmen(world, "log", "-q", "-n", "1")[1]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("moment", [catches_signals, imports_torch], ids=lambda moment: moment.__name__)
def test_from_the_start_and_while_torch_is_imported(
    world: World, number: signal.Signals, moment: Callable[[subprocess.Popen[str]], bool]
) -> None:
    with apply_many(world) as process:
        wait_until(lambda: moment(process), process)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (ExitCode.INTERRUPTED, "", LINE.format(number.name))


@pytest.mark.parametrize("seconds", [0.1, 0.6])
def test_while_facts_are_captured(world: World, seconds: float) -> None:
    before = head(world)
    with apply_many(world) as process:
        wait_until((world.checkpoint / LOCK_NAME).exists, process)
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (ExitCode.INTERRUPTED, "", LINE.format("SIGTERM"))
    assert not (world.checkpoint / LOCK_NAME).exists()
    assert head(world) == before
    assert run_malmen(world, "verify")[0] == ExitCode.DONE


def test_training_ends_and_goes_on(world: World) -> None:
    """Under nohup a closing terminal changes nothing; SIGTERM ends it; `--resume` goes on."""
    command = ["train", str(world.checkpoint.parent / "training.jsonl"), "--steps", "100000", "--validate-every", "50"]
    command += ["--rank", "4", "--blocks", "1", "--batch-tokens", "512", "--workspace", str(world.workspace.root)]
    ignoring = ["bash", "-c", 'trap "" HUP; exec "$@"', "-", sys.executable, "-m", "malmen_cli", *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(ignoring, env=environment(), **pipes) as process:
        assert process.stderr is not None
        while "held-out ES" not in (line := process.stderr.readline()):
            assert line, process.communicate()
        process.send_signal(signal.SIGHUP)
        assert "held-out ES" in process.stderr.readline() + process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (ExitCode.INTERRUPTED, "")
    assert err.endswith(LINE.format("SIGTERM")) and "Traceback" not in err
    assert run_malmen(world, "verify")[0] == ExitCode.DONE
    again = [sys.executable, "-m", "malmen_cli", *command, "--resume"]
    with subprocess.Popen(again, env=environment(), **pipes) as process:
        assert process.stderr is not None
        first = next(line for line in process.stderr if line.startswith("step"))  # a note may come before it
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    step = int(first.split()[1].replace(",", ""))
    assert process.returncode == ExitCode.INTERRUPTED and step > 50


def test_ctrl_c_on_a_terminal_gives_the_cursor_back(world: World) -> None:
    command = [sys.executable, "-m", "malmen_cli", "apply", "many.jsonl", "--batch-tokens", "16", "--device", "cpu"]
    with PseudoTerminal(command, cwd=world.checkpoint.parent) as terminal:
        terminal.wait_for("\x1b[?25l")  # the bar hides it
        assert terminal.cursor_is_hidden()
        terminal.type(CTRL_C)
        assert terminal.wait() == ExitCode.INTERRUPTED
        assert not terminal.cursor_is_hidden()
        assert terminal.screen()[-1] == LINE.format("SIGINT").strip()
        assert len(terminal.screen()) <= 2  # the bar is gone; the terminal shows ^C
    assert not (world.checkpoint / LOCK_NAME).exists()


SLOW_TO_END = """
import sys, time
from malmen_cli.cli.interruption import interruptible
with interruptible():
    try:
        print("on", flush=True)
        time.sleep(60)
    finally:
        print("ending", flush=True)
        time.sleep({})
"""

SWALLOWED = """
import os, signal, time
from malmen_cli.cli.interruption import interruptible
class Thing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        [None for _ in range(1000)]
with interruptible():
    try:
        Thing()
        time.sleep({})
        print("still here")
    finally:
        print("tidied up", flush=True)
"""


class TestTwoSignals:
    @staticmethod
    def run(first: signal.Signals, second: signal.Signals, seconds: float, pause: float = 0) -> tuple[int, str]:
        command = [sys.executable, "-c", SLOW_TO_END.format(seconds)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment(), **pipes) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "on\n"
            process.send_signal(first)
            assert process.stdout.readline() == "ending\n"
            time.sleep(pause)
            process.send_signal(second)
            _, err = process.communicate(timeout=30)
        return process.returncode, err

    def test_a_second_ctrl_c_kills(self) -> None:
        assert self.run(signal.SIGINT, signal.SIGINT, 60, 0.2) == (-signal.SIGINT, "")
        assert self.run(signal.SIGTERM, signal.SIGINT, 60, 0.2) == (-signal.SIGINT, "")

    def test_a_signal_that_comes_twice_is_one_request(self) -> None:
        """`timeout` signals its child, then the child's group."""
        command = [sys.executable, "-c", SLOW_TO_END.format(0.5)]
        for number in (signal.SIGTERM, signal.SIGINT):
            stop = ["timeout", f"--signal={number.name}", "1", *command]
            done = subprocess.run(stop, env=environment(), capture_output=True, text=True)
            assert (done.stdout, done.stderr) == ("on\nending\n", LINE.format(number.name))
            assert self.run(number, number, 0.5) == (ExitCode.INTERRUPTED, LINE.format(number.name))

    @pytest.mark.parametrize("seconds", [20, 0])
    def test_an_interruption_is_not_lost_in_a_callback(self, seconds: int) -> None:
        """And what is to be tidied up is: where it came to its end before, all the same."""
        code = [sys.executable, "-c", SWALLOWED.format(seconds)]
        done = subprocess.run(code, env=environment(), capture_output=True, text=True, timeout=60)
        said = "tidied up\n" if seconds else "still here\ntidied up\n"
        assert (done.returncode, done.stdout, done.stderr) == (ExitCode.INTERRUPTED, said, LINE.format("SIGTERM"))


IMPORTED = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.{})
    time.sleep(0.1)
except BaseException:
    print("swallowed")
print("imported", flush=True)
"""
RUN = """
import time
from malmen_cli.cli.interruption import insist, interruptible
with interruptible():
    {}
    time.sleep(600)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_import_is_finished_first(tmp_path: Path, name: str) -> None:
    """Libraries catch what is raised while they are imported, or cannot be imported again."""
    (tmp_path / "library.py").write_text(IMPORTED.format(name))
    code = [sys.executable, "-c", RUN.format("import library")]
    found = subprocess.run(code, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout, found.stderr) == (ExitCode.INTERRUPTED, "imported\n", LINE.format(name))


def test_what_was_made_another_error_of_is_an_interruption_still(tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text(IMPORTED.format("SIGINT").replace("\n", "\n    ").join(["def f():", ""]))
    code = [sys.executable, "-c", RUN.format("from library import f; f(); insist()")]
    found = subprocess.run(code, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (ExitCode.INTERRUPTED, "swallowed\nimported\n")
