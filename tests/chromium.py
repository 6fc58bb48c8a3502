"""A real browser for tests: Chromium without a window and without a network, spoken to over a pair of pipes.

The pipes carry the DevTools protocol (https://chromedevtools.github.io/devtools-protocol), a JSON message each, ended
by a NUL byte.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_LAUNCHER = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for descriptor, pipe in zip((3, 4), pipes):
    os.dup2(pipe, descriptor)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""The browser reads descriptor 3 and writes 4, whatever numbers the pipes' ends have here."""
PATIENCE = 60.0  # seconds, for a start or an answer on a busy machine


class Browser:
    """One page of a running browser.

    Attributes:
        complaints: what the page's console said, warnings and errors. requested: every URL that was asked for.
    """

    def __init__(self, into: int, out: int) -> None:
        self._into, self._out = into, out
        self._number, self._buffer, self._session = 0, b"", ""
        self._events: list[str] = []
        self.complaints: list[str] = []
        self.requested: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)

    def open(self, path: Path, *, width: int = 1000, dark: bool = False) -> None:
        """Show a file, and wait until all of it is there."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=1200, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        until = time.monotonic() + PATIENCE
        while "Page.loadEventFired" not in self._events:
            self._take(self._message(until))

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def screenshot(self) -> bytes:
        """What is in the window, the top of the page, as PNG."""
        shot = self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._into, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while True:
            answer = self._message(until)
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                found: dict[str, Any] = answer["result"]
                return found
            self._take(answer)

    def _take(self, message: dict[str, Any]) -> None:
        method, about = message.get("method", ""), message.get("params", {})
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            self.requested.append(about["request"]["url"])
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("warning", "error"):
            self.complaints.append(about["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(about["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(about["args"]))

    def _message(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = until - time.monotonic()
            assert left > 0 and select.select([self._out], [], [], left)[0], "the browser does not answer"
            part = os.read(self._out, 1 << 16)
            assert part, "the browser has ended"
            self._buffer += part
        first, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(first)
        return found


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own; the test is skipped where none is installed."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"needs a browser, and none of {', '.join(NAMES)} is installed")
    their_in, our_in = os.pipe()
    our_out, their_out = os.pipe()
    command = [
        *(sys.executable, "-c", _LAUNCHER, str(their_in), str(their_out), program),
        "--headless",
        "--remote-debugging-pipe",
        "--no-sandbox",  # as root there is none; the page is a file that this test has written
        "--disable-gpu",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={profile}",
    ]
    kept = {**os.environ, "HOME": str(profile)}
    with subprocess.Popen(
        command, pass_fds=(their_in, their_out), env=kept, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        os.close(their_in)
        os.close(their_out)
        try:
            browser = Browser(our_in, our_out)
            yield browser
            with suppress(AssertionError, OSError):
                browser.call("Browser.close")
        finally:
            os.close(our_in)
            os.close(our_out)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
