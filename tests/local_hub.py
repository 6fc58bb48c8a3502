"""A hub on this machine: what huggingface_hub asks of one, over real HTTP from local folders, with every request kept.

It answers the model's listing, HEAD and GET of its files (with ranges), and says no as the real one does: to gated and
private repositories, and to what is not there. Connections can be made to break in the middle of a file.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "1111111111111111111111111111111111111111"
OLDER = "2222222222222222222222222222222222222222"
_LARGE = (".safetensors", ".bin", ".msgpack", ".h5")  # stored by their SHA-256, as LFS does


@dataclass
class Repository:
    """Folders by commit, and commits by branch or tag.

    Attributes:
        token: only who brings it may read the files (`gated`: but everybody the listing), None for everybody.
        gated: whether the owners say who may read it. listed_size: the size that the listing claims of every weight.
        missing: files that are listed, and answered with 404.
    """

    commits: dict[str, Path]
    branches: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    token: str | None = None
    gated: bool = False
    listed_size: int | None = None
    missing: set[str] = field(default_factory=set)


@dataclass
class Hub:
    """Attributes:
    requests: method and path of each, in order. breaks: names of files and after how many bytes their next
    connections break. stalling: names of files of which half comes and then nothing. failing: status that everything
    is answered with.
    """

    endpoint: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    breaks: dict[str, list[int]] = field(default_factory=dict)
    stalling: set[str] = field(default_factory=set)
    failing: int | None = None
    closed: threading.Event = field(default_factory=threading.Event)

    def fetched(self) -> set[str]:
        """Names of the files whose bytes were asked for."""
        return {path.rpartition("/")[2] for method, path in self.requests if method == "GET" and "/resolve/" in path}


@contextmanager
def local_hub() -> Iterator[Hub]:
    """A hub with no repositories yet, for as long as the `with` block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    hub = server.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closed.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if self.hub.failing is not None:
            self._refuse(self.hub.failing, "")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._listing(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        else:
            self._refuse(404, "")

    def _found(self, repo: str, revision: str, *, listing: bool) -> tuple[str, Path] | None:
        """The commit and its folder; None where the answer was no."""
        known = self.hub.repositories.get(repo)
        allowed = known is not None and known.token in (None, self.headers.get("Authorization", "")[len("Bearer ") :])
        if known is None or not (allowed or known.gated):
            self._refuse(401, "RepoNotFound")
            return None
        if not allowed and not listing:
            self._refuse(401, "GatedRepo")
            return None
        commit = known.branches.get(revision, revision)
        if commit not in known.commits:
            self._refuse(404, "RevisionNotFound")
            return None
        return commit, known.commits[commit]

    def _listing(self, repo: str, revision: str) -> None:
        found = self._found(repo, revision, listing=True)
        if found is None:
            return
        commit, folder = found
        siblings: list[dict[str, Any]] = []
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            size = path.stat().st_size
            entry: dict[str, Any] = {"rfilename": str(path.relative_to(folder)), "blobId": _etag(path), "size": size}
            if path.name.endswith(_LARGE):
                claimed = self.hub.repositories[repo].listed_size or size
                entry |= {"size": claimed, "lfs": {"size": claimed, "sha256": _etag(path), "pointerSize": 134}}
            siblings.append(entry)
        body = json.dumps({"_id": "0", "id": repo, "modelId": repo, "sha": commit, "siblings": siblings}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self._end(body)

    def _file(self, repo: str, revision: str, name: str) -> None:
        found = self._found(repo, revision, listing=False)
        if found is None:
            return
        commit, folder = found
        if not (folder / name).is_file() or name in self.hub.repositories[repo].missing:
            self._refuse(404, "EntryNotFound", commit)
            return
        data = (folder / name).read_bytes()
        start = 0
        if wanted := self.headers.get("Range"):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{_etag(folder / name)}"')
        self.send_header("X-Repo-Commit", commit)
        if name.endswith(_LARGE):
            self.send_header("X-Linked-ETag", f'"{_etag(folder / name)}"')
            self.send_header("X-Linked-Size", str(len(data)))
        breaks = self.hub.breaks.get(name)
        if name in self.hub.stalling and self.command == "GET":
            self._end(data[start:], len(data) // 2)
            self.wfile.flush()
            self.hub.closed.wait()
            return
        self._end(data[start:], breaks.pop(0) if breaks and self.command == "GET" else None)

    def _refuse(self, status: int, code: str, commit: str = "") -> None:
        self.send_response(status)
        for header, value in (("X-Error-Code", code), ("X-Repo-Commit", commit)):
            if value:
                self.send_header(header, value)
        self._end(b"{}")

    def _end(self, body: bytes, break_after: int | None = None) -> None:
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if break_after is None else body[:break_after])
        if break_after is not None:
            self.close_connection = True


def _etag(path: Path) -> str:
    data = path.read_bytes()
    if path.name.endswith(_LARGE):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
