from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from fork_server import Server
from ledger_world import FAST


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """Forks commands that need no torch."""
    made = Server(torch=False)
    yield made
    made.close()


@pytest.fixture(scope="session")
def torch_server() -> Iterator[Server]:
    """Forks commands that compute."""
    made = Server(torch=True)
    yield made
    made.close()


@pytest.fixture
def fast_folder() -> Iterator[Path]:
    """In memory where there is such a place: a process that is killed loses nothing of what it wrote, synced or not."""
    with TemporaryDirectory(dir=FAST) as folder:
        yield Path(folder).resolve()
