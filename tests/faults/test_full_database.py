"""R2: the database itself can take no more, which no error of a single call stands for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from fault_cases import CASES
from ledger_world import FAST, apply, fact
from next_command import settled
from recorded_commands import workspace_in

from malmen_cli.errors import MalmenError
from malmen_cli.ledger import Ledger


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(dir=FAST) as place:
        yield Path(place).resolve() / "world"


def test_a_full_database_is_a_clean_failure(folder: Path) -> None:
    CASES["apply"].prepare(folder)
    before = settled(folder)
    with Ledger.open(workspace_in(folder), writing=True) as ledger:
        pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(MalmenError, match="full"):
            apply(ledger, *(fact(str(number)) for number in range(1000)))
    assert settled(folder) == before
