from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from ledger_world import FAST

# A loaded machine is not a failing test.
settings.register_profile("unhurried", deadline=None, max_examples=50)
settings.load_profile("unhurried")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """As pytest's own, but in memory where possible: a ledger syncs every step it takes."""
    with TemporaryDirectory(dir=FAST) as folder:
        yield Path(folder)
