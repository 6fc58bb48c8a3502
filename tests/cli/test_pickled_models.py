"""Models whose weights are pickled: converted once into a working copy, edited there, their folder never touched."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_caches import REVISION, cache_model, cache_state
from pickled_models import INDEX, WEIGHTS, Runs, load_model, pickle_weights, save_pickled
from program import run_here
from safetensors_folders import file_digests, names_in
from tiny_models import make_facts, save_tiny_model, write_facts

from malmen_cli.errors import ExitCode, UnknownName, UnsafeFile, UnsupportedModel, UsageError
from malmen_cli.ledger import Ledger, create_workspace, verify_ledger
from malmen_cli.operations.models import find_model, find_or_register, register_source

REPO = "EleutherAI/gpt-j-6b"
TRAINING = ("--steps", "2", "--rank", "4", "--blocks", "1", "--preserved-keys", "8", "--facts-per-step", "4")

Malmen = Callable[..., tuple[int, str, str]]


@pytest.fixture
def malmen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Malmen:
    """Runs a command in a folder with a workspace and fact files, and with a hub cache of its own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    write_facts(tmp_path / "train.jsonl", make_facts(12, start=4000))
    write_facts(tmp_path / "facts.jsonl", make_facts(2))
    assert run_here(capfd, "init")[0] == 0
    return lambda *arguments: run_here(capfd, *arguments)


@pytest.mark.parametrize(
    ("family", "dtype", "shards", "old_format"),
    [("gpt2", "float32", 1, True), ("gptj", "float16", 1, False), ("llama", "float32", 3, False)],
)
def test_the_whole_way_leaves_the_folder_as_it_is(
    tmp_path: Path, malmen: Malmen, family: Any, dtype: str, shards: int, old_format: bool
) -> None:
    folder = pickle_weights(
        save_tiny_model(tmp_path / "model", family, dtype=dtype), shards=shards, old_format=old_format
    )
    before = file_digests(folder)
    copy = tmp_path / ".malmen" / "checkpoints" / "mine"

    status, out, err = malmen("models", "add", "mine", "./model")
    assert status == 0, err
    assert f"{folder} are .bin files, which are not edited in place" in err and str(copy) in err
    assert f"copied from   {folder} (.bin, converted)" in out
    base = file_digests(copy)
    pickled, converted = load_model(folder, pickled=True).state_dict(), load_model(copy, pickled=False).state_dict()
    assert pickled.keys() == converted.keys() and all(torch.equal(pickled[name], converted[name]) for name in pickled)

    assert malmen("models", "show", "None")[0] == ExitCode.USAGE  # what is converted is of no repository of that name
    assert malmen("train", "train.jsonl", *TRAINING, "--model", "./model")[0] == 0
    assert malmen("apply", "facts.jsonl", "--sample", "0", "--model", "model")[0] in (0, ExitCode.FACTS_FAILED_CHECK)
    assert file_digests(copy) != base
    assert malmen("verify")[0] == 0
    assert malmen("revert", "HEAD")[0] == 0
    assert {name: digest for name, digest in file_digests(copy).items() if name in base} == base
    assert malmen("diff", "--exit-code")[0] == 0 and malmen("verify")[0] == 0
    assert file_digests(folder) == before

    shown = json.loads(malmen("models", "show", "./model", "--json")[1])
    assert shown["name"] == "mine" and shown["origin"]["folder"] == str(folder)
    weights = {name: digest for name, digest in before.items() if name.endswith(".bin")}
    assert {record["file"]: record["digest"] for record in shown["origin"]["converted"]} == weights
    assert f"{folder} (.bin, converted)" in malmen("models", "list")[1]
    assert names_in(copy.parent) == ["mine"]


def test_a_model_of_the_hub_cache_is_converted_too(tmp_path: Path, malmen: Malmen) -> None:
    folder = pickle_weights(save_tiny_model(tmp_path / "source", "gptj", dtype="float16"))
    cache_model(tmp_path / "hub", REPO, folder)
    before = cache_state(tmp_path / "hub")
    status, _, err = malmen("train", "train.jsonl", *TRAINING, "--model", "gpt-j")
    assert status == 0, err
    assert "as gpt-j" in err and "edited in place" not in err
    out = malmen("models", "show", REPO)[1]
    assert f"{REPO} at {REVISION[:10]} (.bin, converted)" in out
    copy = tmp_path / ".malmen" / "checkpoints" / "gpt-j"
    assert "model.safetensors" in names_in(copy) and WEIGHTS not in names_in(copy)
    assert cache_state(tmp_path / "hub") == before


def test_the_first_use_registers_a_folder_and_the_next_finds_it(tmp_path: Path, malmen: Malmen) -> None:
    pickle_weights(save_tiny_model(tmp_path / "model"))
    first = malmen("train", "train.jsonl", *TRAINING, "--model", "./model")
    assert first[0] == 0 and "as model" in first[2] and "are not edited in place" in first[2]
    again = malmen("apply", "facts.jsonl", "--model", "./model", "--sample", "0")
    assert again[0] in (0, ExitCode.FACTS_FAILED_CHECK) and "Registered" not in again[2]
    assert names_in(tmp_path / ".malmen" / "checkpoints") == ["model"]


# Registering ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path):  # type: ignore[no-untyped-def]
    with Ledger.open(create_workspace(tmp_path), writing=True) as ledger:
        yield ledger


@pytest.fixture
def folder(tmp_path: Path, tiny_folder: Callable[..., Path]) -> Path:
    return pickle_weights(Path(shutil.copytree(tiny_folder("gpt2"), tmp_path / "model")))


class TestFindingAgain:
    def test_by_its_folder_however_it_is_written(self, ledger: Ledger, folder: Path) -> None:
        model = register_source(ledger, "mine", str(folder)).model
        (folder.parent / "link").symlink_to(folder)
        with ledger.read() as db:
            for name in ("mine", str(folder), f"{folder}/", str(folder.parent / "link"), str(model.path)):
                assert find_model(db, name).id == model.id

    def test_a_file_that_was_only_touched_is_the_same(self, ledger: Ledger, folder: Path) -> None:
        model = register_source(ledger, "mine", str(folder)).model
        os.utime(folder / WEIGHTS, ns=(0, 0))
        assert find_or_register(ledger, str(folder), "malmen train") == (model, None)

    def test_other_weights_in_the_folder_are_not_taken_for_those(self, ledger: Ledger, folder: Path) -> None:
        register_source(ledger, "mine", str(folder))
        state = torch.load(folder / WEIGHTS)
        state["transformer.wte.weight"][0, 0] += 1
        save_pickled(folder / WEIGHTS, state)
        with pytest.raises(UsageError, match=r"pytorch_model\.bin in .* is not what mine was converted from"):
            find_or_register(ledger, str(folder), "malmen train")
        register_source(ledger, "other", str(folder))

    def test_two_copies_of_one_folder_must_be_named(self, ledger: Ledger, folder: Path) -> None:
        for name in ("one", "two"):
            register_source(ledger, name, str(folder))
        with ledger.read() as db, pytest.raises(UnknownName, match="one, two"):
            find_model(db, str(folder))

    def test_a_folder_that_has_safetensors_too_is_edited_in_place(
        self, ledger: Ledger, tmp_path: Path, tiny_folder: Callable[..., Path]
    ) -> None:
        both = Path(shutil.copytree(tiny_folder("gpt2"), tmp_path / "both"))
        save_pickled(both / WEIGHTS, {"x": Runs(tmp_path / "marker")})
        registration = register_source(ledger, "mine", str(both))
        assert registration.model.path == both and registration.note is None
        assert names_in(ledger.workspace.checkpoints) == []


class TestRefusals:
    """Nothing is left behind, nothing in the folder changes, and the same name may be used afterwards."""

    def refused(self, ledger: Ledger, folder: Path, words: str, error: type[Exception] = UnsafeFile) -> None:
        before = cache_state(folder)
        with pytest.raises(error, match=words):
            register_source(ledger, "mine", str(folder))
        assert cache_state(folder) == before
        assert names_in(ledger.workspace.checkpoints) == []
        with ledger.read() as db, pytest.raises(UnknownName):
            find_model(db, "mine")
        assert verify_ledger(ledger).problems == []

    def test_code(self, ledger: Ledger, folder: Path, tmp_path: Path) -> None:
        state = torch.load(folder / WEIGHTS)
        save_pickled(folder / WEIGHTS, {**state, "x": Runs(tmp_path / "marker")})
        self.refused(ledger, folder, r"asks for posix\.system")
        assert not (tmp_path / "marker").exists()
        save_pickled(folder / WEIGHTS, state)
        assert register_source(ledger, "mine", str(folder)).model.name == "mine"

    def test_a_file_cut_short(self, ledger: Ledger, folder: Path) -> None:
        os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size // 2)
        self.refused(ledger, folder, "cut short")

    def test_a_shard_that_is_missing(self, ledger: Ledger, tmp_path: Path, tiny_folder: Callable[..., Path]) -> None:
        folder = pickle_weights(Path(shutil.copytree(tiny_folder("llama"), tmp_path / "shards")), shards=2)
        next(folder.glob("*.bin")).unlink()
        self.refused(ledger, folder, "leads nowhere")

    def test_a_shard_outside_the_folder(self, ledger: Ledger, folder: Path) -> None:
        (folder / WEIGHTS).rename(folder.parent / "away.bin")
        (folder / INDEX).write_text(json.dumps({"weight_map": {"w": "../away.bin"}}))
        self.refused(ledger, folder, "not a bare file name")

    def test_a_link_out_of_the_folder(self, ledger: Ledger, folder: Path) -> None:
        (folder / WEIGHTS).rename(folder.parent / "away.bin")
        (folder / WEIGHTS).symlink_to(folder.parent / "away.bin")
        self.refused(ledger, folder, "links to .*away.bin, outside")

    def test_a_pipe(self, ledger: Ledger, folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        os.mkfifo(folder / WEIGHTS)
        self.refused(ledger, folder, "is not a regular file")

    def test_an_adapter(self, ledger: Ledger, folder: Path) -> None:
        (folder / "adapter_config.json").write_text("{}")
        self.refused(ledger, folder, "holds an adapter", UnsupportedModel)

    def test_quantised(self, ledger: Ledger, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "x"}}))
        self.refused(ledger, folder, "quantised", UnsupportedModel)

    def test_more_weights_than_the_files_hold(self, ledger: Ledger, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"n_inner": 1 << 20}))
        self.refused(ledger, folder, "speaks of", UnsupportedModel)

    def test_layers_that_are_not_there(self, ledger: Ledger, folder: Path) -> None:
        before = file_digests(folder)
        with pytest.raises(UnsupportedModel):
            register_source(ledger, "mine", str(folder), layers=["no.such.layer"])
        assert names_in(ledger.workspace.checkpoints) == [] and file_digests(folder) == before
