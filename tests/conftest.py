from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Every call into the mathematics checks its shapes and dtypes; this must run before `malmen_cli.editing` is imported.
install_import_hook("malmen_cli.editing", "beartype.beartype")


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
