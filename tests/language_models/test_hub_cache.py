from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hub_caches import REVISION, cache_model
from huggingface_hub import constants
from tiny_models import INNER, WIDTH, load, save_tiny_model

from malmen_cli.errors import UnknownName
from malmen_cli.language_models.edited_layers import family_layers
from malmen_cli.language_models.hub_cache import (
    Snapshot,
    find_snapshot,
    is_complete,
    repositories,
    shards,
    snapshot_of,
)
from malmen_cli.language_models.known_names import KNOWN_NAMES
from malmen_cli.ledger.registration import check_name

OTHER = "f" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["EleutherAI/gpt-j-6b", "gpt-j", "GPT-J"])
def test_a_model_is_found_by_id_and_by_known_name(cache: Path, folder: Path, name: str) -> None:
    home = cache_model(cache, "EleutherAI/gpt-j-6b", folder)
    found = find_snapshot(name)
    assert found == Snapshot("EleutherAI/gpt-j-6b", REVISION, home.resolve())
    assert found.blobs == home.resolve().parents[1] / "blobs"


def test_the_other_spelling_of_a_known_repository_is_found(cache: Path, folder: Path) -> None:
    cache_model(cache, "EleutherAI/gpt-j-6B", folder)
    found = find_snapshot("gpt-j")
    assert found is not None and found.repo == "EleutherAI/gpt-j-6B"
    cache_model(cache, "gpt2", folder)  # as it was called before organisations
    found = find_snapshot("gpt2")
    assert found is not None and found.repo == "gpt2"


@pytest.mark.parametrize("name", ["gpt-j", "org/other", "no such model", "..", "a--b", "/", "#7", "x/y/z"])
def test_what_is_not_there_is_not_found(cache: Path, folder: Path, name: str) -> None:
    assert find_snapshot(name) is None
    cache_model(cache, "org/model", folder)
    assert find_snapshot(name) is None


def test_main_wins_over_other_revisions(cache: Path, folder: Path) -> None:
    cache_model(cache, "org/model", folder, revision=OTHER, main=False)
    cache_model(cache, "org/model", folder)
    found = find_snapshot("org/model")
    assert found is not None and found.revision == REVISION


def test_without_main_the_only_revision_counts_and_two_are_refused(cache: Path, folder: Path) -> None:
    cache_model(cache, "org/model", folder, revision=OTHER, main=False)
    found = find_snapshot("org/model")
    assert found is not None and found.revision == OTHER
    cache_model(cache, "org/model", folder, main=False)
    with pytest.raises(UnknownName, match="2 revisions") as caught:
        find_snapshot("org/model")
    assert caught.value.remedy and "snapshots" in caught.value.remedy


def test_a_snapshots_folder_is_known_by_its_place(cache: Path, folder: Path) -> None:
    home = cache_model(cache, "org/model", folder)
    assert snapshot_of(home) == find_snapshot("org/model")
    for other in (folder, home.parent, home.parents[1], cache):
        assert snapshot_of(other) is None


def test_known_names_are_lower_case_and_may_be_names_of_models() -> None:
    for name, repos in KNOWN_NAMES.items():
        assert name == name.lower() and repos
        check_name(name)
    assert repositories("GPT-J") == KNOWN_NAMES["gpt-j"]
    assert repositories("org/model") == ("org/model",)


def test_gptj_edits_the_last_six_of_28_as_the_paper_does() -> None:
    names = [f"transformer.h.{i}.mlp.fc_out" for i in range(28)]
    assert family_layers("gptj", ["transformer", *names]) == names[22:]


def test_a_tiny_gptj_loads_with_its_layers(tmp_path: Path) -> None:
    model = load(save_tiny_model(tmp_path / "model", "gptj"))
    assert [(layer.name, layer.transposed, *layer.weight.shape) for layer in model.layers] == [
        (f"transformer.h.{i}.mlp.fc_out", True, INNER, WIDTH) for i in (1, 2)
    ]


def test_a_revision_is_found_by_branch_and_commit_alone(cache: Path, folder: Path) -> None:
    cache_model(cache, "org/model", folder)
    old = cache_model(cache, "org/model", folder, revision=OTHER, main=False)
    (old.parents[1] / "refs" / "v1").write_text(OTHER)
    for revision, commit in (("main", REVISION), (REVISION, REVISION), ("v1", OTHER), (OTHER, OTHER)):
        found = find_snapshot("org/model", revision)
        assert found is not None and found.revision == commit
    assert find_snapshot("org/model", "v2") is None


@pytest.mark.parametrize("whole", ["model.safetensors", "pytorch_model.bin"])
def test_a_snapshot_is_complete_with_weights_and_a_tokenizer(folder: Path, whole: str) -> None:
    (folder / "tokenizer.json").write_text("{}")
    assert not is_complete(folder)
    one, two = (folder / f"{number}{Path(whole).suffix}" for number in (1, 2))
    (folder / f"{whole}.index.json").write_text(json.dumps({"weight_map": {"a": one.name, "b": two.name}}))
    one.write_text("")
    assert not is_complete(folder)
    two.symlink_to("nowhere")
    assert not is_complete(folder)
    two.unlink()
    two.write_text("")
    assert is_complete(folder)
    (folder / f"{whole}.index.json").unlink()
    assert not is_complete(folder)
    (folder / whole).write_text("")
    assert is_complete(folder)
    (folder / "tokenizer.json").unlink()
    assert not is_complete(folder)


WEIGHT_MAPS: list[Any] = [[], {}, {"a": 1}, {"a": ["b"]}, {"a": "../b.safetensors"}, {"a": "model.py"}, {"a": ".."}]


@pytest.mark.parametrize("text", ["", "[]", "{}", *(json.dumps({"weight_map": value}) for value in WEIGHT_MAPS)])
def test_what_is_no_index_of_shards(folder: Path, text: str) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(ValueError):
        shards(index)
    for name in ("tokenizer.json", "model.py", "b"):
        (folder / name).write_text("{}")
    assert not is_complete(folder)
