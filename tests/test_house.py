"""The house of the design: which folder may import which, and who may load what."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "malmen_cli"

BELOW: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "facts": {"errors"},
    "checkpoint": {"errors"},
    "editing": {"errors"},
    "ledger": {"checkpoint", "facts", "errors"},
    "language_models": {"editing", "checkpoint", "facts", "errors"},
    "methods": {"language_models", "editing", "facts", "errors", "config"},
    "evaluation": {"language_models", "ledger", "facts", "editing", "errors", "config"},
    "training": {
        "evaluation",
        "methods",
        "language_models",
        "ledger",
        "editing",
        "checkpoint",
        "facts",
        "errors",
        "config",
    },
    "operations": {
        "methods",
        "training",
        "evaluation",
        "language_models",
        "ledger",
        "editing",
        "checkpoint",
        "facts",
        "errors",
        "config",
    },
    "demo": {"language_models", "facts", "errors", "config"},
    "cli": {
        "demo",
        "operations",
        "training",
        "evaluation",
        "methods",
        "language_models",
        "ledger",
        "facts",
        "errors",
        "config",
    },
}


def rooms() -> list[str]:
    return sorted({path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")})


def imports(room: str) -> set[str]:
    """Every module that the room's files name in an import, at any depth of nesting."""
    folder = PACKAGE / room
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    found: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: relative import"
                found.add(node.module or "")
    return found


def test_every_room_is_known() -> None:
    assert set(rooms()) - {"__init__", "__main__"} == set(BELOW)


@pytest.mark.parametrize("room", sorted(BELOW))
def test_arrows_point_down(room: str) -> None:
    used = {name.split(".")[1] for name in imports(room) if name.startswith("malmen_cli.")}
    assert used - {room} <= BELOW[room]


@pytest.mark.parametrize("room", sorted(BELOW))
def test_transformers_has_one_importer(room: str) -> None:
    heavy = {name.split(".")[0] for name in imports(room)}
    # demo/make.py makes the embedded model from nothing; nothing that is installed runs it.
    assert ("transformers" in heavy) == (room in ("language_models", "demo"))


@pytest.mark.parametrize("room", ["ledger", "checkpoint", "facts", "errors"])
def test_the_lower_rooms_stay_light(room: str) -> None:
    heavy = {name.split(".")[0] for name in imports(room)}
    assert not heavy & {"torch", "transformers", "typer", "rich", "numpy", "safetensors", "pydantic"}


def test_editing_touches_no_files() -> None:
    assert not {name.split(".")[0] for name in imports("editing")} & {"pathlib", "os", "io", "shutil", "safetensors"}


@pytest.mark.parametrize("module", ["malmen_cli.ledger", "malmen_cli.checkpoint", "malmen_cli.cli.main"])
def test_importing_loads_no_torch(module: str) -> None:
    heavy = {"torch", "transformers", "alembic", "sqlalchemy", "pydantic"}
    code = f"import sys, {module}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_nothing_unpickles_or_phones_home() -> None:
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text("utf-8")
        for word in ("torch.save(", "wandb", "trust_remote_code=True"):
            assert word not in text, f"{file}: {word}"
    for room in BELOW:
        assert not {name.split(".")[0] for name in imports(room)} & {"pickle", "dill", "joblib", "shelve"}


def test_torch_loads_tensors_alone_and_in_one_place() -> None:
    loads = {
        (file.name, ast.unparse(node))
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("torch.load", "torch.jit.load"))
    }
    assert [name for name, _ in loads] == ["unpickling.py"]
    assert all("weights_only=True" in call for _, call in loads)
