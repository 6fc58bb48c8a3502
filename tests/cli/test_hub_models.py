"""Models of the local hub cache: found by name, edited in a working copy, the cache itself never touched."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_caches import REVISION, cache_model, cache_state
from safetensors_folders import file_digests, names_in
from tiny_models import environment, make_facts, save_tiny_model, write_facts

from malmen_cli.errors import UnknownName, UnsafeFile, UnsupportedModel, UsageError
from malmen_cli.ledger import Ledger, create_workspace, verify_ledger
from malmen_cli.operations.models import find_model, find_or_register, register_source

REPO = "EleutherAI/gpt-j-6b"


@pytest.fixture(scope="module")
def gptj(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("source") / "model", "gptj")


@pytest.fixture
def cache(tmp_path: Path, gptj: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    cache_model(tmp_path / "hub", REPO, gptj)
    return tmp_path / "hub"


def malmen(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """In a folder, with a hub cache of our own and no network to ask."""
    kept = {name: value for name, value in environment().items() if not name.startswith(("HF_", "HUGGINGFACE"))}
    command = [sys.executable, "-m", "malmen_cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**kept, **variables}, timeout=300)


def test_train_and_apply_find_gpt_j_by_its_name(tmp_path: Path, cache: Path) -> None:
    variables = {"HF_HUB_CACHE": str(cache)}
    before = cache_state(cache)
    write_facts(tmp_path / "train.jsonl", make_facts(12, start=4000))
    write_facts(tmp_path / "facts.jsonl", make_facts(2))
    assert malmen(tmp_path, "init").returncode == 0
    added = malmen(tmp_path, "data", "add", "zsre", "train.jsonl")
    assert added.returncode == 0, added.stderr
    (tmp_path / "run.toml").write_text("facts_per_step = 4\n[editor]\nrank = 4\npreserved_keys = 8\n")

    trained = malmen(
        tmp_path, "train", "--model", "gpt-j", "--split", "zsre", "--steps", "1", "--config", "run.toml", **variables
    )
    assert trained.returncode == 0, trained.stderr
    assert "Registered" in trained.stderr and "as gpt-j" in trained.stderr
    applied = malmen(tmp_path, "apply", "facts.jsonl", "--model", "gpt-j", "--json", **variables)
    assert applied.returncode in (0, 3), applied.stderr
    assert json.loads(applied.stdout)["entry"]["model"] == "gpt-j"
    assert cache_state(cache) == before

    shown = json.loads(malmen(tmp_path, "models", "show", REPO, "--json", **variables).stdout)
    assert shown["name"] == "gpt-j" and shown["model_type"] == "gptj" and shown["active_facts"] == 2
    assert shown["origin"]["repo"] == REPO and shown["origin"]["revision"] == REVISION
    assert Path(shown["path"]).parent == (tmp_path / ".malmen" / "checkpoints").resolve()
    assert REPO in malmen(tmp_path, "models", "list").stdout
    assert f"{REPO} at {REVISION[:10]}" in malmen(tmp_path, "models", "show").stdout
    assert malmen(tmp_path, "verify", "-q").returncode == 0

    assert malmen(tmp_path, "export", "--as", "lora", "--output", "adapter").returncode == 0
    adapter = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (REPO, REVISION)
    assert f'from_pretrained("{REPO}", revision="{REVISION}")' in (tmp_path / "adapter" / "README.md").read_text()

    copy, snapshot = Path(shown["path"]), next(cache.glob("*/snapshots/*"))
    assert (copy / "model.safetensors").read_bytes() != (snapshot / "model.safetensors").read_bytes()
    assert malmen(tmp_path, "revert", "HEAD").returncode == 0
    for path in snapshot.iterdir():
        assert (copy / path.name).read_bytes() == path.read_bytes()
    assert cache_state(cache) == before


def test_readers_and_plans_register_nothing_and_say_what_to_do(tmp_path: Path, cache: Path) -> None:
    variables = {"HF_HOME": str(tmp_path)}  # whose hub folder the cache is
    write_facts(tmp_path / "facts.jsonl", make_facts(1))
    malmen(tmp_path, "init")
    for verb in (["log"], ["plan", "facts.jsonl", "--quick"], ["verify"], ["apply", "facts.jsonl", "--dry-run"]):
        done = malmen(tmp_path, *verb, "--model", "gpt-j", **variables)
        assert done.returncode == 2 and f"malmen models add gpt-j {REPO}" in done.stderr, (verb, done.stderr)
    assert json.loads(malmen(tmp_path, "models", "list", "--json").stdout) == []
    elsewhere = malmen(tmp_path, "log", "--model", "gpt-j", HF_HUB_CACHE=str(tmp_path / "empty"))
    assert elsewhere.returncode == 2
    for words in (f"hf download {REPO}", f"malmen models add gpt-j {REPO}", "malmen models add gpt-j FOLDER"):
        assert words in elsewhere.stderr


@pytest.fixture
def ledger(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Ledger.open(create_workspace(tmp_path), writing=True) as ledger:
        yield ledger


class TestRegistering:
    @pytest.mark.parametrize("by", ["known name", "repository", "snapshot"])
    def test_every_way_to_name_it(self, ledger: Ledger, cache: Path, by: str) -> None:
        source = {"known name": "GPT-J", "repository": REPO, "snapshot": str(next(cache.glob("*/snapshots/*")))}[by]
        before = cache_state(cache)
        registered, registration = find_or_register(ledger, source, "malmen train")
        assert registration is not None
        assert registered.name == ("gpt-j" if by == "known name" else "gpt-j-6b")
        again, registration = find_or_register(ledger, source, "malmen train")
        assert again.id == registered.id and registration is None
        with ledger.read() as db:
            for name in (registered.name, REPO, "gpt-j", str(registered.path), str(next(cache.glob("*/snapshots/*")))):
                assert find_model(db, name).id == registered.id
        assert cache_state(cache) == before
        assert verify_ledger(ledger).problems == []

    def test_two_copies_of_one_repository_must_be_named(self, ledger: Ledger, cache: Path) -> None:
        for name in ("one", "two"):
            register_source(ledger, name, REPO)
        with ledger.read() as db:
            assert find_model(db, "two").path == (ledger.workspace.checkpoints / "two").resolve()
            with pytest.raises(UnknownName, match="one, two"):
                find_model(db, REPO)

    def test_a_taken_name_is_refused_and_the_copy_there_is_left_alone(self, ledger: Ledger, cache: Path) -> None:
        registered = register_source(ledger, "mine", REPO).model
        before = file_digests(registered.path)
        with pytest.raises(UsageError, match="another model is registered as mine"):
            register_source(ledger, "mine", REPO)
        assert file_digests(registered.path) == before

    def test_a_copy_that_cannot_be_registered_is_removed(self, ledger: Ledger, cache: Path) -> None:
        with pytest.raises(UnsupportedModel):
            register_source(ledger, "mine", REPO, layers=["no.such.layer"])
        assert names_in(ledger.workspace.checkpoints) == []

    def test_a_copy_that_a_killed_command_left_is_made_anew(self, ledger: Ledger, cache: Path) -> None:
        left = ledger.workspace.checkpoints / "mine"
        left.mkdir()
        (left / "model.safetensors").write_bytes(b"half")
        assert register_source(ledger, "mine", REPO).model.path == left.resolve()
        assert verify_ledger(ledger).problems == []

    def test_what_only_calls_itself_weights_is_refused_in_words(self, ledger: Ledger, cache: Path, gptj: Path) -> None:
        old = Path(shutil.copytree(gptj, cache.with_name("old")))
        (old / "model.safetensors").rename(old / "pytorch_model.bin")
        cache_model(cache, "org/old", old)
        with pytest.raises(UnsafeFile, match="cannot be read as weights"):
            register_source(ledger, "old", "org/old")
        assert names_in(ledger.workspace.checkpoints) == []

    def test_what_is_nowhere_names_the_commands(self, ledger: Ledger, cache: Path) -> None:
        with pytest.raises(UnknownName) as caught:
            register_source(ledger, "mine", "org/other")
        assert "hf download org/other" in str(caught.value.remedy)
        with pytest.raises(UnknownName) as caught:
            register_source(ledger, "mine", "nothing")
        assert "malmen models add NAME FOLDER" in str(caught.value.remedy)
        with pytest.raises(UsageError, match="is not a folder"):
            register_source(ledger, "mine", "./nothing")

    def test_a_plain_folder_is_edited_in_place(self, ledger: Ledger, tmp_path: Path, gptj: Path) -> None:
        shutil.copytree(gptj, tmp_path / "model")
        assert register_source(ledger, "mine", str(tmp_path / "model")).model.path == (tmp_path / "model").resolve()
        assert names_in(ledger.workspace.checkpoints) == []
