"""Ctrl-C, SIGTERM and SIGHUP: the first one ends the command in words, with every `finally` run; a second Ctrl-C kills.

Imports next to nothing, so that a signal is caught while the rest of the program, torch included, is being imported.
What is raised within an import others may catch, or leave half a library behind: there it waits for the import's end.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STATUS = 130  # ExitCode.INTERRUPTED, without importing it
SAME_REQUEST = 1.0  # seconds: `timeout` and closing terminals send a signal twice, which is no second request
SAME_KEY = 0.1  # seconds: of Ctrl-C too, and nobody presses that as fast

RETRY = 0.02  # seconds until an import is looked at again

_first: tuple[int, float] | None = None  # the signal that ends this command, and when it came


class Interrupted(BaseException):
    """A signal asks this command to end: every `finally` runs, and the ledger is left settled or recoverable."""


@contextmanager
def interruptible() -> Iterator[None]:
    """Run the body so that a signal ends the process with exit status 130 and one line on stderr, no traceback.

    A signal that is ignored from the start, such as SIGHUP under nohup, stays ignored.
    """
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    signal.signal(signal.SIGALRM, lambda _, frame: _raise(frame))
    sys.unraisablehook = _not_swallowed
    try:
        yield
        insist()
    except Interrupted as interruption:
        _say(f"malmen: interrupted ({interruption}); the next command settles whatever was under way\n")
        sys.exit(STATUS)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def insist() -> None:
    """End the command where a signal has asked for it and somebody has made another error of that."""
    if _first is not None:
        raise Interrupted(signal.Signals(_first[0]).name)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _first
    if _first is None:
        _first = (number, time.monotonic())
        _raise(frame)
    elif time.monotonic() - _first[1] > (SAME_KEY if number == signal.SIGINT else SAME_REQUEST):
        if sys.stderr is not None and sys.stderr.isatty():
            _say("\x1b[?25h")  # a progress bar hides the cursor
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _raise(frame: FrameType | None) -> None:
    """Raise what ends the command, or have it tried again soon where a library is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            signal.setitimer(signal.ITIMER_REAL, RETRY)
            return
        frame = frame.f_back
    insist()


def _not_swallowed(unraisable: Any) -> None:
    """Python only reports what a callback raises. An interruption must not be lost so: the state can be recovered."""
    if not isinstance(unraisable.exc_value, Interrupted):
        sys.__unraisablehook__(unraisable)
        return
    if not sys.is_finalizing():
        signal.setitimer(signal.ITIMER_REAL, RETRY)  # once more, where somebody is above it
        return
    _say(f"malmen: interrupted ({unraisable.exc_value}); the next command settles whatever was under way\n")
    os._exit(STATUS)


def _say(text: str) -> None:
    """To stderr as it is, whatever state Python's own streams are in."""
    with suppress(OSError):
        os.write(2, text.encode())
