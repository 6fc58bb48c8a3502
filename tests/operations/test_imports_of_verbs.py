"""Reading the ledger and taking back the newest entry load neither torch nor what only migrations need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import World, environment, make_facts, make_world, write_facts

RUN_AND_LIST_MODULES = """
import sys
from malmen_cli.cli.main import main
try:
    main()
finally:
    print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("world"))
    world.apply(*make_facts(3))
    world.apply(*make_facts(2, start=3))
    return world


def loaded_by(world: World, *arguments: str) -> set[str]:
    """Top-level modules that a verb has loaded by the time it has succeeded."""
    command = [sys.executable, "-c", RUN_AND_LIST_MODULES, *arguments, "--workspace", str(world.workspace.root)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].removeprefix("loaded:").split())


HEAVY = {"torch", "transformers", "tokenizers", "safetensors", "numpy"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["log"],
        ["log", "--json", "--model", "tiny"],
        ["show", "HEAD"],
        ["show", "#1", "--json"],
        ["verify"],
        ["data", "list"],
        ["recover"],
        ["gc", "--states", "--dry-run"],
    ],
)
def test_reading_verbs_load_neither_torch_nor_the_schema_tools(world: World, arguments: list[str]) -> None:
    loaded = loaded_by(world, *arguments)
    assert "typer" in loaded  # a control: the list is of what the verb loaded
    assert not loaded & (HEAVY | {"alembic", "sqlalchemy", "huggingface_hub"})


def test_a_quick_plan_that_predicts_nothing_loads_no_torch(world: World, tmp_path: Path) -> None:
    facts = write_facts(tmp_path / "facts.jsonl", make_facts(2, start=9))
    assert not loaded_by(world, "plan", "--quick", "-q", str(facts)) & (HEAVY | {"alembic", "sqlalchemy"})


def test_reverting_the_newest_entry_loads_no_torch_and_an_older_one_no_transformers(world: World) -> None:
    assert not loaded_by(world, "revert", "HEAD") & HEAVY
    assert not loaded_by(world, "revert", "HEAD") & HEAVY  # a revert is reverted from objects too
    older = loaded_by(world, "revert", "#2")
    assert "torch" in older
    assert "transformers" not in older
