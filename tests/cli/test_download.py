"""`--download`: the real huggingface_hub client against a hub on this machine, from nothing to a reverted edit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hub_caches import cache_model
from local_hub import COMMIT, OLDER, Hub, Repository, local_hub
from pseudo_terminal import CTRL_C, PseudoTerminal
from safetensors.torch import load_file
from safetensors_folders import file_digests, names_in
from tiny_models import environment, make_facts, save_tiny_model, write_facts

from malmen_cli.ledger import Ledger, create_workspace, find_workspace, store
from malmen_cli.operations.models import register

REPO = "org/tiny"
OTHER_FORMATS = ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "consolidated.safetensors")
Malmen = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Repositories as people publish them, by kind: the model, and much that malmen has no use for."""
    folder = tmp_path_factory.mktemp("models")
    made = {
        "one file": save_tiny_model(folder / "one", "gpt2"),
        "shards": save_tiny_model(folder / "shards", "llama", sharded=True),
        "older": save_tiny_model(folder / "older", "gpt2", seed=1),
    }
    for name in (*OTHER_FORMATS, "modeling_tiny.py", "README.md", ".gitattributes"):
        (made["one file"] / name).write_bytes(b"of no use")
    (made["one file"] / "original").mkdir()
    (made["one file"] / "original" / "model.safetensors").write_bytes(b"of no use")
    made["pickled"] = Path(shutil.copytree(made["older"], folder / "pickled"))
    torch.save(load_file(made["pickled"] / "model.safetensors"), made["pickled"] / "pytorch_model.bin")
    (made["pickled"] / "model.safetensors").unlink()
    return made


@pytest.fixture
def hub(models: dict[str, Path]) -> Iterator[Hub]:
    with local_hub() as hub:
        hub.repositories[REPO] = Repository({COMMIT: models["one file"]})
        yield hub


@pytest.fixture
def malmen(tmp_path: Path, hub: Hub) -> Malmen:
    """Runs malmen in a folder with a workspace, with the hub on this machine and a hub cache of its own."""
    kept = {name: value for name, value in environment().items() if not name.startswith(("HF_", "HUGGINGFACE"))}
    kept = {name: value for name, value in kept.items() if not name.lower().endswith("_proxy")}
    kept |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")}

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "malmen_cli", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env={**kept, **variables}, timeout=300
        )

    create_workspace(tmp_path)
    return run


def snapshot(tmp_path: Path, repo: str = REPO, commit: str = COMMIT) -> Path:
    return tmp_path / "hf" / "hub" / f"models--{repo.replace('/', '--')}" / "snapshots" / commit


def nothing_registered(tmp_path: Path) -> bool:
    with Ledger.open(find_workspace(tmp_path / ".malmen")) as ledger, ledger.read() as db:
        return store.models(db) == [] and names_in(ledger.workspace.checkpoints) == []


def test_from_the_hub_to_a_reverted_edit(tmp_path: Path, hub: Hub, malmen: Malmen, models: dict[str, Path]) -> None:
    write_facts(tmp_path / "train.jsonl", make_facts(12, start=4000))
    write_facts(tmp_path / "facts.jsonl", make_facts(2))
    (tmp_path / "run.toml").write_text("facts_per_step = 4\n[editor]\nrank = 4\npreserved_keys = 8\n")

    added = malmen("models", "add", "mine", REPO, "--download")
    assert added.returncode == 0, added.stderr
    assert f"Downloading {REPO} at {COMMIT[:10]}: " in added.stderr
    assert f"{REPO} at {COMMIT[:10]}" in added.stdout
    assert hub.requests[0][0] == "GET" and "/resolve/" not in hub.requests[0][1]
    fetched = [path.rpartition("/")[2] for method, path in hub.requests if method == "GET" and "/resolve/" in path]
    assert fetched[0] == "config.json" and fetched[-1] == "model.safetensors"
    assert not {*OTHER_FORMATS, "modeling_tiny.py", "README.md", ".gitattributes"} & set(fetched)
    for name in names_in(snapshot(tmp_path)):
        assert (snapshot(tmp_path) / name).read_bytes() == (models["one file"] / name).read_bytes()

    before = file_digests(tmp_path / ".malmen" / "checkpoints" / "mine")
    hub.requests.clear()
    trained = malmen("train", "train.jsonl", "--model", REPO, "--steps", "2", "--config", "run.toml", "--download")
    assert trained.returncode == 0, trained.stderr
    applied = malmen("apply", "facts.jsonl", "--model", REPO)
    assert applied.returncode in (0, 3), applied.stderr
    assert file_digests(tmp_path / ".malmen" / "checkpoints" / "mine") != before
    assert malmen("revert", "HEAD").returncode == 0
    assert file_digests(tmp_path / ".malmen" / "checkpoints" / "mine") == before
    assert malmen("verify", "-q").returncode == 0
    assert hub.requests == []  # registered, so that --download had nothing to do


def test_the_first_use_downloads_over_a_line_that_breaks(tmp_path: Path, hub: Hub, malmen: Malmen) -> None:
    hub.breaks["model.safetensors"] = [1000]
    write_facts(tmp_path / "train.jsonl", make_facts(12, start=4000))
    (tmp_path / "run.toml").write_text("facts_per_step = 4\n[editor]\nrank = 4\npreserved_keys = 8\n")
    train = ("train", "train.jsonl", "--model", REPO, "--steps", "2", "--config", "run.toml")
    done = malmen(*train, "-q", "--download")
    assert done.returncode == 0, done.stderr
    assert "Downloading" not in done.stderr and "as tiny" in done.stderr
    got = [path.rpartition("/")[2] for method, path in hub.requests if method == "GET"]
    assert got[-2:] == ["model.safetensors"] * 2


def test_a_gated_model_in_shards(hub: Hub, malmen: Malmen, models: dict[str, Path]) -> None:
    shards = {path.name for path in models["shards"].glob("model-*.safetensors")}
    assert len(shards) >= 2
    hub.repositories["org/large"] = Repository({COMMIT: models["shards"]}, token="secret", gated=True)
    done = malmen("models", "add", "large", "org/large", "--download", HF_TOKEN="secret")
    assert done.returncode == 0, done.stderr
    assert {name for name in hub.fetched() if name.endswith(".safetensors")} == shards


def test_without_the_flag_nobody_asks_the_hub(tmp_path: Path, hub: Hub, malmen: Malmen) -> None:
    write_facts(tmp_path / "facts.jsonl", make_facts(1))
    for verb in (
        ["models", "add", "mine", REPO],
        ["models", "add", "mine", REPO, "--revision", "main"],
        ["train", "facts.jsonl", "--model", REPO],
    ):
        done = malmen(*verb, HF_HUB_OFFLINE="0")
        assert done.returncode == 2 and "--download" in done.stderr, (verb, done.stderr)
    assert hub.requests == []


def test_what_is_in_the_cache_is_not_fetched_again(
    tmp_path: Path, hub: Hub, malmen: Malmen, models: dict[str, Path]
) -> None:
    cache_model(tmp_path / "hf" / "hub", REPO, models["older"], revision=COMMIT)
    done = malmen("models", "add", "mine", REPO, "--download", "--revision", "main")
    assert done.returncode == 0 and "Downloading" not in done.stderr, done.stderr
    assert hub.requests == []


def test_a_revision_is_fetched_beside_another(
    tmp_path: Path, hub: Hub, malmen: Malmen, models: dict[str, Path]
) -> None:
    cache_model(tmp_path / "hf" / "hub", REPO, models["shards"], revision=COMMIT)
    hub.repositories[REPO] = Repository({COMMIT: models["shards"], OLDER: models["older"]}, {"v1": OLDER})
    unknown = malmen("models", "add", "old", REPO, "--revision", "v9", "--download")
    assert unknown.returncode == 2 and "has no revision v9" in unknown.stderr
    done = malmen("models", "add", "old", REPO, "--revision", "v1", "--download", "-q")
    assert done.returncode == 0, done.stderr
    hub.requests.clear()
    assert malmen("models", "add", "again", REPO, "--revision", OLDER).returncode == 0
    listed = json.loads(malmen("models", "list", "--json").stdout)
    assert {model["name"]: model["origin"]["revision"] for model in listed} == {"old": OLDER, "again": OLDER}
    assert hub.requests == []


def test_pickled_weights_are_fetched_where_there_are_no_others(
    tmp_path: Path, hub: Hub, malmen: Malmen, models: dict[str, Path]
) -> None:
    hub.repositories["org/old"] = Repository({COMMIT: models["pickled"]})
    done = malmen("models", "add", "old", "org/old", "--download")
    assert done.returncode == 0, done.stderr
    assert "pytorch_model.bin" in names_in(snapshot(tmp_path, "org/old"))
    assert not [name for name in names_in(snapshot(tmp_path, "org/old")) if name.endswith(".safetensors")]


def test_an_interrupted_download_is_completed_by_the_next_command(
    tmp_path: Path, hub: Hub, malmen: Malmen, models: dict[str, Path]
) -> None:
    hub.repositories["org/large"] = Repository({COMMIT: models["shards"]})
    last = max(path.name for path in models["shards"].glob("model-*.safetensors"))
    hub.repositories["org/large"].missing.add(last)
    broken = malmen("models", "add", "large", "org/large", "--download")
    assert broken.returncode == 1 and "run the command again" in broken.stderr.lower(), broken.stderr
    assert nothing_registered(tmp_path)
    without = malmen("models", "add", "large", "org/large")
    assert without.returncode == 2 and "malmen models add large org/large --download" in without.stderr
    assert nothing_registered(tmp_path)
    hub.repositories["org/large"].missing.clear()
    hub.requests.clear()
    done = malmen("models", "add", "large", "org/large", "--download")
    assert done.returncode == 0, done.stderr
    assert hub.fetched() == {last}


def test_ctrl_c_ends_a_download_at_once(tmp_path: Path, hub: Hub, malmen: Malmen) -> None:
    hub.stalling.add("model.safetensors")
    variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "malmen_cli", "models", "add", "mine", REPO, "--download"]
    with PseudoTerminal(command, cwd=tmp_path, env=variables) as terminal:
        terminal.wait_for("downloading, MB")
        while "model.safetensors" not in hub.fetched():
            time.sleep(0.05)
        terminal.type(CTRL_C)
        assert terminal.wait(8) == 130
        assert "malmen: interrupted" in "\n".join(terminal.screen()) and not terminal.cursor_is_hidden()
    assert not list((tmp_path / "hf").rglob("*.incomplete")) and nothing_registered(tmp_path)
    hub.stalling.clear()
    hub.requests.clear()
    done = malmen("models", "add", "mine", REPO, "--download")
    assert done.returncode == 0, done.stderr
    assert hub.fetched() == {"model.safetensors"}


@pytest.mark.parametrize("kind", ["unknown", "private", "gated", "wrong token", "ill", "nothing to load", "too large"])
def test_refusals_are_in_words_and_register_nothing(
    tmp_path: Path, hub: Hub, malmen: Malmen, models: dict[str, Path], kind: str
) -> None:
    known, source = hub.repositories[REPO], REPO
    if kind == "unknown":
        source, status, words = "org/none", 2, "has no model org/none"
    elif kind == "private":
        known.token, status, words = "secret", 2, "hf auth login"
    elif kind in ("gated", "wrong token"):
        known.token, known.gated, status, words = "secret", True, 1, "hf auth login"
    elif kind == "ill":
        hub.failing, status, words = 503, 1, "answered 503"
    elif kind == "nothing to load":
        (tmp_path / "empty").mkdir()
        shutil.copyfile(models["older"] / "config.json", tmp_path / "empty" / "config.json")
        hub.repositories[REPO] = Repository({COMMIT: tmp_path / "empty"})
        status, words = 2, "holds no weights"
    else:
        known.listed_size, status, words = 1 << 60, 1, "too little space"
    variables = {"HF_TOKEN": "no"} if kind == "wrong token" else {}
    done = malmen("models", "add", "mine", source, "--download", **variables)
    assert done.returncode == status and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "model.safetensors" not in hub.fetched()
    assert nothing_registered(tmp_path)


def test_no_hub_and_no_permission_to_ask(tmp_path: Path, hub: Hub, malmen: Malmen) -> None:
    nobody = malmen("models", "add", "mine", REPO, "--download", HF_ENDPOINT="http://127.0.0.1:9")
    assert nobody.returncode == 1 and "http://127.0.0.1:9 cannot be reached" in nobody.stderr
    for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        forbidden = malmen("models", "add", "mine", REPO, "--download", **{switch: "1"})
        assert forbidden.returncode == 2 and f"Unset {switch}" in forbidden.stderr
    assert hub.requests == [] and nothing_registered(tmp_path)


def test_names_that_cannot_be_used_are_refused_before_anybody_is_asked(
    tmp_path: Path, hub: Hub, malmen: Malmen, models: dict[str, Path]
) -> None:
    with Ledger.open(find_workspace(tmp_path / ".malmen"), writing=True) as ledger:
        register(ledger, "mine", Path(shutil.copytree(models["older"], tmp_path / "model")))
    write_facts(tmp_path / "facts.jsonl", make_facts(1))
    for verb in (
        ["models", "add", "mine", REPO, "--download"],
        ["models", "add", "no/name", REPO, "--download"],
        ["models", "add", "other", "neither-known-nor-a-repository", "--download"],
        ["apply", "facts.jsonl", "--model", REPO, "--dry-run", "--download"],
        ["models", "add", "other", "./model", "--revision", "v1"],
    ):
        done = malmen(*verb)
        assert done.returncode == 2, (verb, done.stderr)
    assert hub.requests == []
