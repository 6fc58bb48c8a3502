from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from figures import Figures
from jaxtyping import install_import_hook

# Every call into the mathematics checks its shapes and dtypes; this must run before `malmen_cli.editing` is imported.
install_import_hook("malmen_cli.editing", "beartype.beartype")

FIGURES = pytest.StashKey[Figures]()

LONGEST = ("test_recordings.py", "test_real_models.py", "test_real_model.py")
"""Files whose tests take the longest: begun at the end, they would keep one core busy and the others idle."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="try every point of the promises' harnesses, not a subset")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = Figures()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of `pytest -n` hands its figures on: plain values only."""
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["figures"] = json.dumps(session.config.stash[FIGURES].tables, default=str)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    node.config.stash[FIGURES].join(json.loads(getattr(node, "workeroutput", {}).get("figures", "{}")))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[FIGURES].lines():
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def full(request: pytest.FixtureRequest) -> bool:
    """Whether a harness is to try every point (`--full`: minutes to an hour) or the subset that CI runs."""
    return bool(request.config.getoption("--full"))


@pytest.fixture(scope="session")
def figures(request: pytest.FixtureRequest) -> Figures:
    """Add a row to a table printed after the tests: `figures("R1: killed", command="apply", bad=0, tried=9)`."""
    return request.config.stash[FIGURES]


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of shared data and models that stands beside a checkout of this repository."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the shared data folder {folder}, which is not there")
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders of tiny models, made on demand by `tiny_models.save_tiny_model` and shared: they must not be edited."""
    made: dict[tuple[object, ...], Path] = {}

    def folder(family: str = "gpt2", **kind: object) -> Path:
        from tiny_models import save_tiny_model

        key = (family, *sorted(kind.items()))
        if key not in made:
            made[key] = save_tiny_model(tmp_path_factory.mktemp("tiny") / "model", family, **kind)
        return made[key]

    return folder
