from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ledger_world import make_world

HEAVY = {
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "typer",
    "rich",
    "pydantic",
    "sqlalchemy",
    "alembic",
    "platformdirs",
}

READ = """
import sys
from pathlib import Path
from malmen_cli.ledger import Ledger, find_workspace, store, verify_ledger
with Ledger.open(find_workspace(None, Path(sys.argv[1]), {}), writing=sys.argv[2] == "writing") as ledger:
    with ledger.read() as db:
        assert len(store.entries(db)) == 1
    assert not verify_ledger(ledger).problems
print(*sys.modules)
"""


@pytest.mark.parametrize("how", ["reading", "writing"])
def test_a_current_ledger_loads_nothing_heavy(tmp_path: Path, how: str) -> None:
    make_world(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path), how], capture_output=True, text=True, check=True
    )
    assert {name.split(".")[0] for name in result.stdout.split()} & HEAVY == set()


def test_making_a_ledger_does_not_load_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from malmen_cli.ledger import create_workspace; "
        "create_workspace(Path(sys.argv[1])); print(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in result.stdout.split()}
    assert loaded & HEAVY <= {"sqlalchemy", "alembic", "rich", "numpy", "pydantic"} - {"numpy", "pydantic", "rich"}
