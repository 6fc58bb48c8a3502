"""Pickled weights become safetensors: the same model, bit for bit, and nothing of a stranger's pickle is run."""

from __future__ import annotations

import collections
import json
import os
import random
import resource
import signal
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pickled_models import INDEX, WEIGHTS, Runs, load_model, pickle_weights, save_pickled, save_shards
from safetensors import safe_open
from safetensors_folders import file_digests, names_in
from tiny_models import save_tiny_model

from malmen_cli.checkpoint.manifest import read_manifest
from malmen_cli.checkpoint.pickled_files import pickled_files, pickled_start
from malmen_cli.errors import MalmenError, UnsafeFile, UnsupportedModel, VerificationFailed
from malmen_cli.language_models.pickled_weights import check_pickled, convert_pickled, tied_names
from malmen_cli.language_models.unpickling import load_pickled

FORMATS = pytest.mark.parametrize("old_format", [False, True], ids=["zip", "older format"])


def convert(source: Path, target: Path, tied: Mapping[str, str] = {}) -> dict[str, torch.Tensor]:
    """Convert a folder's pickled weights into a new folder and return what was written."""
    pickled = pickled_files(source, lambda path: path)
    assert pickled is not None
    target.mkdir()
    check_pickled(pickled)
    size = convert_pickled(pickled, target, tied)
    found = {}
    for path in sorted(target.glob("*.safetensors")):
        size -= path.stat().st_size
        with safe_open(path, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    assert size == 0
    return found


def converted(tmp_path: Path, state: object, *, old_format: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of one pickled file after its conversion."""
    (tmp_path / "source").mkdir()
    save_pickled(tmp_path / "source" / WEIGHTS, state, old_format=old_format)
    return convert(tmp_path / "source", tmp_path / "converted")


def bits(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())


def assert_same(found: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert bits(found[name]) == bits(tensor), name


# Whole models --------------------------------------------------------------------------------------------------------


def save_tiny_bart(folder: Path) -> Path:
    """Its output head and both embeddings are one tensor with a third, `model.shared`."""
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes = {"vocab_size": 60, "d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    model: Any = BartForConditionalGeneration(BartConfig(**sizes, **layers, max_position_embeddings=32))
    model.save_pretrained(folder)
    return folder


@FORMATS
@pytest.mark.parametrize("shards", [1, 3], ids=["one file", "shards"])
@pytest.mark.parametrize(
    ("family", "dtype"), [("gpt2", "float32"), ("gptj", "float16"), ("llama", "bfloat16"), ("bart", "float32")]
)
def test_transformers_loads_the_same_model(
    tmp_path: Path, family: Any, dtype: str, shards: int, old_format: bool
) -> None:
    folder = tmp_path / "model"
    if family == "bart":
        save_tiny_bart(folder)
    else:
        save_tiny_model(folder, family, dtype=dtype)
    pickle_weights(folder, shards=shards, old_format=old_format)
    before = file_digests(folder)
    pickled = load_model(folder, pickled=True)
    convert(folder, tmp_path / "converted", tied_names(folder))
    assert file_digests(folder) == before

    (tmp_path / "converted" / "config.json").write_bytes((folder / "config.json").read_bytes())
    found = load_model(tmp_path / "converted", pickled=False)
    assert_same(found.state_dict(), pickled.state_dict())
    one = [[p.data_ptr() for p in model.state_dict().values()] for model in (found, pickled)]
    assert len(set(one[0])) == len(set(one[1]))  # what was tied is
    assert len(read_manifest(tmp_path / "converted").weights) == shards


def test_of_tied_tensors_the_one_that_transformers_keeps_is_written(tmp_path: Path) -> None:
    for name, source in (("gpt2", save_tiny_model(tmp_path / "gpt2")), ("bart", save_tiny_bart(tmp_path / "bart"))):
        saved = read_manifest(source).tensors.keys()
        pickle_weights(source)
        assert len(torch.load(source / WEIGHTS)) > len(saved)
        assert convert(source, tmp_path / f"{name} converted", tied_names(source)).keys() == saved


def test_tied_names_that_are_not_one_tensor_in_the_file_are_both_written(tmp_path: Path) -> None:
    """As a file is whose embeddings were trained apart: transformers loads both, and leaves them apart."""
    folder = pickle_weights(save_tiny_model(tmp_path / "model"))
    state = torch.load(folder / WEIGHTS)
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    save_pickled(folder / WEIGHTS, state)
    assert_same(convert(folder, tmp_path / "converted", tied_names(folder)), state)


@pytest.mark.parametrize("shards", [1, 2])
def test_the_same_weights_give_the_same_files(tmp_path: Path, shards: int) -> None:
    folder = pickle_weights(save_tiny_model(tmp_path / "model"), shards=shards)
    for name in ("one", "two"):
        convert(folder, tmp_path / name)
    assert file_digests(tmp_path / "one") == file_digests(tmp_path / "two")
    modes = {path.stat().st_mode for path in (tmp_path / "one").iterdir()}
    (tmp_path / "new").touch()
    assert modes == {(tmp_path / "new").stat().st_mode}


# Kinds of tensors ----------------------------------------------------------------------------------------------------

NOT_A_NUMBER = torch.tensor([0x7FC00001, 0x7F800001, -1, 0], dtype=torch.int32).view(torch.float32)
LARGE = torch.arange(60.0)
TENSORS = {
    "bfloat16": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "float16": torch.tensor([1.5, -0.0, float("inf")], dtype=torch.float16),
    "float64": torch.tensor([0.1], dtype=torch.float64),
    "bool": torch.tensor([[True], [False]]),
    "uint8": torch.arange(7, dtype=torch.uint8),
    "int64": torch.tensor([-(2**62)]),
    "complex": torch.tensor([1 + 2j], dtype=torch.complex64),
    "nan": NOT_A_NUMBER,
    "scalar": torch.tensor(3.25),
    "empty": torch.empty(0),
    "empty matrix": torch.empty(4, 0, dtype=torch.bfloat16),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "every other": torch.arange(8.0)[::2],
    "view": LARGE[10:20],
    "overlapping view": LARGE[15:25].reshape(2, 5),
    "repeated": torch.tensor([1.0, 2.0]).expand(3, 2),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "same": LARGE,
    "the same": LARGE,
    "the same, transposed": LARGE.reshape(6, 10).T,
    "name with ünicode": torch.ones(1),
}


@FORMATS
def test_every_kind_of_tensor(tmp_path: Path, old_format: bool) -> None:
    assert_same(converted(tmp_path, TENSORS, old_format=old_format), TENSORS)
    read_manifest(tmp_path / "converted")


def test_a_state_dict_with_its_own_metadata(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3)).state_dict()
    assert isinstance(state, collections.OrderedDict) and state._metadata  # type: ignore[attr-defined]
    assert_same(converted(tmp_path, state), state)


# Refusals ------------------------------------------------------------------------------------------------------------


class Rebuilt:
    """Unpickled, it is a tensor of any shape over a small storage."""

    def __init__(self, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.shape, self.stride = shape, stride

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (torch.zeros(4)._typed_storage(), 0, self.shape, self.stride, False, {})


ONE = torch.ones(2)
NO_STATE_DICTS = [
    ("a wrapped state dict", {"state_dict": {"w": ONE}}, UnsupportedModel, "'state_dict' holds a dict"),
    ("an optimiser's", {"w": ONE, "epoch": 3}, UnsupportedModel, "'epoch' is no tensor but of type int"),
    ("a tensor alone", ONE, UnsupportedModel, "does not hold a state dict"),
    ("nothing", {}, UnsupportedModel, "does not hold a state dict"),
    ("a name that is a number", {1: ONE}, UnsafeFile, "cannot be a tensor's"),
    ("a name with a NUL", {"a\0b": ONE}, UnsafeFile, "cannot be a tensor's"),
    ("safetensors' own name", {"__metadata__": ONE}, UnsafeFile, "cannot be a tensor's"),
    ("sparse", {"w": ONE.to_sparse()}, UnsupportedModel, "not a plain tensor"),
    ("without values", {"w": torch.empty(2, device="meta")}, UnsupportedModel, "not a plain tensor"),
    ("complex128", {"w": torch.ones(1, dtype=torch.complex128)}, UnsupportedModel, "complex128, which safetensors"),
    ("larger than memory, repeated", {"w": Rebuilt((1 << 40,), (0,))}, UnsafeFile, "would take 4,398,046,511,104 by"),
    ("larger than memory", {"w": Rebuilt((1 << 50,), (1,))}, UnsafeFile, "cut short, damaged"),
]


@FORMATS
@pytest.mark.parametrize(
    ("state", "error", "words"), [c[1:] for c in NO_STATE_DICTS], ids=[c[0] for c in NO_STATE_DICTS]
)
def test_what_is_no_state_dict_of_plain_tensors(
    tmp_path: Path, state: object, error: type[MalmenError], words: str, old_format: bool
) -> None:
    with pytest.raises(error, match=words) as caught:
        converted(tmp_path, state, old_format=old_format)
    assert caught.value.remedy
    assert "weights_only" not in caught.value.message + caught.value.remedy
    assert names_in(tmp_path / "converted") == []


def test_quantised_tensors(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are on their way out of torch
        quantised = torch.quantize_per_tensor(ONE, 0.1, 0, torch.qint8)
    with pytest.raises(UnsupportedModel, match="quantised"):
        converted(tmp_path, {"w": quantised})


@FORMATS
def test_code_is_named_and_not_run(tmp_path: Path, old_format: bool) -> None:
    with pytest.raises(UnsafeFile, match=r"asks for posix\.system, which is not data"):
        converted(tmp_path, {"w": ONE, "x": Runs(tmp_path / "marker")}, old_format=old_format)
    assert not (tmp_path / "marker").exists()
    torch.load(tmp_path / "source" / WEIGHTS, weights_only=False)
    assert (tmp_path / "marker").exists()  # it would have been


@FORMATS
def test_a_file_cut_short_anywhere(tmp_path: Path, old_format: bool) -> None:
    path = tmp_path / WEIGHTS
    save_pickled(path, {"a": torch.arange(50.0), "b": torch.ones(3, 4)}, old_format=old_format)
    data = path.read_bytes()
    for size in [*range(0, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises((UnsafeFile, UnsupportedModel)):
            load_pickled(path, WEIGHTS)


@FORMATS
def test_a_damaged_file_is_read_or_refused_in_words(tmp_path: Path, old_format: bool) -> None:
    path, chance, refused = tmp_path / WEIGHTS, random.Random(0), 0
    save_pickled(path, {"a": LARGE[:20], "b": LARGE[10:12], "c": LARGE.bfloat16()}, old_format=old_format)
    data = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(data)
        for place in chance.choices(range(len(data)), k=chance.choice((1, 2, 10))):
            damaged[place] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            load_pickled(path, WEIGHTS)
        except (UnsafeFile, UnsupportedModel):
            refused += 1
    assert 0 < refused < 300


def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    save_pickled(tmp_path / WEIGHTS, {"w": torch.zeros(100_000)})
    with zipfile.ZipFile(tmp_path / WEIGHTS) as stored:
        members = {name: stored.read(name) for name in stored.namelist()}
    with zipfile.ZipFile(tmp_path / WEIGHTS, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members.items():
            packed.writestr(name, data)
    with pytest.raises(UnsafeFile, match="compressed"):
        load_pickled(tmp_path / WEIGHTS, WEIGHTS)


def test_what_was_written_wrongly_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    def flip(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        """A disk that keeps one bit wrong: the sign of a zero, which no comparison of numbers sees."""
        written(tensors | {"w": -tensors["w"]}, file, metadata)

    written = safetensors.torch.save_file
    monkeypatch.setattr(safetensors.torch, "save_file", flip)
    with pytest.raises(VerificationFailed, match=r"not what pytorch_model\.bin holds: 'w'"):
        converted(tmp_path, {"v": ONE, "w": torch.zeros(1)})


def test_what_was_not_written_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    def cut(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        written(tensors, file, metadata)
        os.truncate(file, file.stat().st_size - 1)

    written = safetensors.torch.save_file
    monkeypatch.setattr(safetensors.torch, "save_file", cut)
    with pytest.raises(VerificationFailed, match=r"not what pytorch_model\.bin holds"):
        converted(tmp_path, {"w": ONE})


def test_a_disk_that_fills_is_said_in_words(tmp_path: Path) -> None:
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    (tmp_path / "source").mkdir()
    save_pickled(tmp_path / "source" / WEIGHTS, {"w": LARGE.repeat(1000)})
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # no file of this process may be larger
        with pytest.raises(MalmenError, match=r"cannot write .*model\.safetensors"):
            convert(tmp_path / "source", tmp_path / "converted")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    free = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(MalmenError, match=r"too little space.*for the converted weights"):
        converted(tmp_path, {"w": ONE})
    assert names_in(tmp_path / "converted") == []


# Shards --------------------------------------------------------------------------------------------------------------


def test_shards_are_known_by_their_index(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    save_shards(tmp_path / "source", [{"b": ONE, "c": ONE}, {"a": ONE * 2}])
    assert_same(convert(tmp_path / "source", tmp_path / "converted"), {"a": ONE * 2, "b": ONE, "c": ONE})
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert json.loads((tmp_path / "converted" / "model.safetensors.index.json").read_text()) == {
        "metadata": {"total_size": 24},
        "weight_map": {"a": second, "b": first, "c": first},
    }


@pytest.mark.parametrize("what", ["a tensor more", "a tensor less", "in another shard"])
def test_an_index_that_disagrees_with_the_shards(tmp_path: Path, what: str) -> None:
    (tmp_path / "source").mkdir()
    save_shards(tmp_path / "source", [{"a": ONE, "b": ONE}, {"c": ONE}])
    index = json.loads((tmp_path / "source" / INDEX).read_text())
    weight_map = index["weight_map"]
    if what == "a tensor less":
        del weight_map["b"]
    else:
        weight_map["d" if what == "a tensor more" else "b"] = weight_map["c"]
    (tmp_path / "source" / INDEX).write_text(json.dumps(index))
    with pytest.raises(UnsafeFile, match="disagree about"):
        convert(tmp_path / "source", tmp_path / "converted")


@pytest.mark.parametrize(
    "shard", ["../x.bin", "/etc/x.bin", "a/x.bin", ".x.bin", "x.safetensors", "x\x1b.bin", "x\\y.bin"]
)
def test_shards_that_are_no_bare_names(tmp_path: Path, shard: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(UnsafeFile):
        pickled_files(tmp_path, lambda path: path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": {}}', '{"weight_map": {"w": 1}}', "[" * 100_000])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(UnsafeFile, match="not an index of shards"):
        pickled_files(tmp_path, lambda path: path)


def test_which_weights_of_a_folder_count(tmp_path: Path) -> None:
    assert pickled_start(tmp_path) is None
    (tmp_path / "training_args.bin").touch()
    assert pickled_start(tmp_path) is None
    (tmp_path / INDEX).touch()
    assert pickled_start(tmp_path) == INDEX
    (tmp_path / WEIGHTS).touch()
    assert pickled_start(tmp_path) == WEIGHTS
    for name in ("model.safetensors", "model.safetensors.index.json", "adapter_config.json"):
        (tmp_path / name).touch()
        assert pickled_start(tmp_path) is None
        (tmp_path / name).unlink()
