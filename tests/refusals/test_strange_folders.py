"""R8: model folders that nobody should edit, or read, are not registered: links, pipes, paths, code, other weights."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_caches import cache_state
from pickled_models import pickle_weights, save_pickled
from refusal_world import REPO, RefusalWorld, a_socket, differing_bytes, picture, run_program
from refusals import Case, Prepare
from safetensors_folders import safetensors_bytes
from tiny_models import INNER, POSITIONS, WIDTH, make_fact, save_tiny_model, tiny_tokenizer, write_facts

from malmen_cli.checkpoint.manifest import INDEX, SINGLE
from malmen_cli.checkpoint.pickled_files import PICKLED
from malmen_cli.errors import ExitCode, UnsupportedModel
from malmen_cli.language_models.edited_layers import rows_act_right

ADD, HUB = ("models add",), ("models add, hub",)
PROJECTION = "transformer.h.1.mlp.c_proj.weight"


def strange(name: str, prepare: Prepare, words: str) -> Case:
    return Case(name, prepare, ADD, ExitCode.USAGE, words)


# Files ---------------------------------------------------------------------------------------------------------------


def instead(name: str, make: Callable[[Path], object]) -> Prepare:
    def prepare(world: RefusalWorld) -> None:
        (world.fresh / name).unlink(missing_ok=True)
        make(world.fresh / name)

    return prepare


def into_the_cache(world: RefusalWorld) -> None:
    """As `hf download --local-dir` of old did: every file a link to a blob."""
    for path in list(world.fresh.iterdir()):
        blob = (world.cache / "models--maker--tiny" / "snapshots").rglob(path.name)
        path.unlink()
        path.symlink_to(next(blob).resolve())


def shard_called(name: str) -> Prepare:
    """An index that names `name`, which is there wherever it can be."""

    def prepare(world: RefusalWorld) -> None:
        (world.fresh / SINGLE).rename(world.home / SINGLE)
        if "\0" not in name:
            target = world.fresh / name
            if not target.exists() and target.parent.is_dir() and world.home in target.resolve().parents:
                shutil.copyfile(world.home / SINGLE, target)
        weight_map = dict.fromkeys([PROJECTION], name)
        (world.fresh / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return prepare


def index(text: str) -> Prepare:
    def prepare(world: RefusalWorld) -> None:
        (world.fresh / SINGLE).unlink()
        (world.fresh / INDEX).write_text(text)

    return prepare


def pipe_as_index(world: RefusalWorld) -> None:
    (world.fresh / SINGLE).unlink()
    os.mkfifo(world.fresh / INDEX)


def index_that_disagrees(world: RefusalWorld) -> None:
    shutil.rmtree(world.fresh)
    save_tiny_model(world.fresh, sharded=True)
    said = json.loads((world.fresh / INDEX).read_text())
    first, *_, last = said["weight_map"]
    said["weight_map"][first] = said["weight_map"][last]
    (world.fresh / INDEX).write_text(json.dumps(said))


def weights(data: bytes) -> Prepare:
    return lambda world: (world.fresh / SINGLE).write_bytes(data)  # type: ignore[return-value]


def header(**entry: object) -> bytes:
    text = json.dumps({PROJECTION: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | entry}).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 4


FILES = [
    strange("links into a hub cache", into_the_cache, "is a link"),
    strange("a link in place of the weights", instead(SINGLE, lambda path: path.symlink_to("/etc/hostname")), "a link"),
    strange("a dangling link", instead(SINGLE, lambda path: path.symlink_to("nowhere")), "is a link"),
    strange("a pipe in place of the weights", instead(SINGLE, os.mkfifo), "is not a regular file"),
    strange("a folder in place of the weights", instead(SINGLE, Path.mkdir), "is not a regular file"),
    strange("a socket in place of the weights", instead(SINGLE, a_socket), "cannot be read"),
    strange("a link to a device as the weights", instead(SINGLE, lambda path: path.symlink_to("/dev/zero")), "a link"),
    strange("a pipe in place of config.json", instead("config.json", os.mkfifo), r"config\.json"),
    strange("a pipe in place of tokenizer.json", instead("tokenizer.json", os.mkfifo), r"tokenizer\.json"),
    strange("a pipe in place of the index", pipe_as_index, "is not a regular file"),
    strange("a shard above the folder", shard_called("../x.safetensors"), "is not a bare file name"),
    strange("a shard at an absolute path", shard_called("/etc/hostname"), "is not a bare file name"),
    strange("a shard with a backslash", shard_called("..\\x.safetensors"), "is not a bare file name"),
    strange("a shard with a drive", shard_called("C:x.safetensors"), "is not a bare file name"),
    strange("a shard with a control character", shard_called("x\x1b[2J.safetensors"), "is not a bare file name"),
    strange("a shard with a NUL", shard_called("x\0.safetensors"), "is not a bare file name"),
    strange("a hidden shard", shard_called(".x.safetensors"), "is not a bare file name"),
    strange("a shard of another kind", shard_called("x.bin"), "must be safetensors"),
    strange("a shard that is not there", index(json.dumps({"weight_map": {"a": "x.safetensors"}})), "No such file"),
    strange("an index that is no JSON", index("{"), "is not an index of shards"),
    strange("an index of the wrong types", index('{"weight_map": {"a": 1}}'), "is not an index of shards"),
    strange("an index nested too deeply", index('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"), "not an index"),
    strange("an index that disagrees with the shards", index_that_disagrees, "disagree"),
    strange("no weights at all", lambda world: (world.fresh / SINGLE).unlink(), "holds neither"),
    strange("weights that are no safetensors", weights(b"PK\3\4" * 100), "not a sound safetensors file"),
    strange("a header longer than the file", weights(b"\xff" * 7 + b"\x0f{}"), "not a sound safetensors file"),
    strange("a tensor outside the file", weights(header(data_offsets=[0, 400], shape=[100])), "lies outside the file"),
    strange("a tensor of negative size", weights(header(shape=[-1])), "negative"),
    strange("a tensor of huge sizes", weights(header(shape=[2**62, 2**62])), "does not take 4 bytes"),
]


@pytest.mark.parametrize("case", FILES, ids=str)
def test_strange_files(case: Case, refuse: Callable[[str, Case], None]) -> None:
    refuse("files that are no plain safetensors", case)


# Code ----------------------------------------------------------------------------------------------------------------

MARKER = "nobodys-business/executed"


class _Writes:
    """Unpickled, it writes the marker."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def configured(**values: object) -> Prepare:
    def prepare(world: RefusalWorld) -> None:
        path = world.fresh / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return prepare


def with_code(**values: object) -> Prepare:
    """Code beside the weights, which config.json and the tokenizer's settings name as theirs."""

    def prepare(world: RefusalWorld) -> None:
        code = f"from pathlib import Path\nPath({str(world.home / MARKER)!r}).touch()\nclass Model: pass\n"
        for name in ("modeling_strange.py", "configuration_strange.py", "tokenization_strange.py"):
            (world.fresh / name).write_text(code)
        (world.fresh / "custom_generate").mkdir()
        (world.fresh / "custom_generate" / "generate.py").write_text(code)
        auto_map = {
            "AutoConfig": "configuration_strange.Model",
            "AutoModelForCausalLM": "modeling_strange.Model",
            "AutoTokenizer": ["tokenization_strange.Model", "tokenization_strange.Model"],
        }
        configured(auto_map=auto_map, **values)(world)
        path = world.fresh / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": auto_map}))

    return prepare


def pickled(world: RefusalWorld) -> None:
    (world.fresh / SINGLE).unlink()
    (world.fresh / "pytorch_model.bin").write_bytes(pickle.dumps(_Writes(world.home / MARKER)))


def pickled_by_torch(*, old_format: bool) -> Prepare:
    """The model's own weights, and one thing more."""

    def prepare(world: RefusalWorld) -> None:
        pickle_weights(world.fresh)
        state = torch.load(world.fresh / PICKLED) | {"x": _Writes(world.home / MARKER)}
        save_pickled(world.fresh / PICKLED, state, old_format=old_format)

    return prepare


def pickled_and_cut_short(world: RefusalWorld) -> None:
    pickle_weights(world.fresh)
    os.truncate(world.fresh / PICKLED, (world.fresh / PICKLED).stat().st_size - 1)


def pickled_in_index(world: RefusalWorld) -> None:
    pickled(world)
    (world.fresh / "pytorch_model.bin").rename(world.fresh / SINGLE)


def adapter(world: RefusalWorld) -> None:
    """peft would load the named base model, and this adapter's pickle on top."""
    said = {"peft_type": "LORA", "base_model_name_or_path": str(world.model), "target_modules": ["c_proj"], "r": 2}
    (world.fresh / "adapter_config.json").write_text(json.dumps(said))
    (world.fresh / "adapter_model.bin").write_bytes(pickle.dumps(_Writes(world.home / MARKER)))


CODE = [
    strange("remote code of an unknown type", with_code(model_type="strange"), "cannot load it"),
    strange("a pickle of no weights", pickled, "cannot be read as weights"),
    strange("code among pickled weights", pickled_by_torch(old_format=False), "asks for getattr, which is not data"),
    strange(
        "code among weights of the older format",
        pickled_by_torch(old_format=True),
        "asks for getattr, which is not data",
    ),
    strange("pickled weights cut short", pickled_and_cut_short, "cut short"),
    strange("a pickle under the weights' name", pickled_in_index, "not a sound safetensors file"),
    strange("an adapter", adapter, "holds an adapter"),
    strange("attention from a hub's repository", configured(attn_implementation="maker/code"), "cannot load|attention"),
]


@pytest.mark.parametrize("case", CODE, ids=str)
def test_code(case: Case, refuse: Callable[[str, Case], None], world: RefusalWorld) -> None:
    refuse("code, pickles, adapters", case)
    assert not (world.home / MARKER).exists()


@pytest.mark.parametrize("how", ["remote code beside a known type", "a pickle beside the weights"])
def test_code_beside_a_sound_model_is_never_run(world: RefusalWorld, how: str) -> None:
    if how.startswith("remote"):
        with_code()(world)
    else:
        (world.fresh / "pytorch_model.bin").write_bytes(pickle.dumps(_Writes(world.home / MARKER)))
        (world.fresh / "training_args.bin").write_bytes(pickle.dumps(_Writes(world.home / MARKER)))
    assert run_program(world.arguments("models add")) == ExitCode.DONE
    assert not (world.home / MARKER).exists()


def test_the_pickle_would_write(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_Writes(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


# Weights that cannot be edited ---------------------------------------------------------------------------------------


def stored_as(dtype: str, size: int) -> Prepare:
    """The edited layers' tensors of another dtype, as a quantised checkpoint holds them."""

    def prepare(world: RefusalWorld) -> None:
        from safetensors import safe_open

        with safe_open(str(world.fresh / SINGLE), framework="pt") as file:
            tensors: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_tensor(name)
                if name.endswith("mlp.c_proj.weight"):
                    tensors[name] = (dtype, tuple(tensor.shape), bytes(size * tensor.numel()))
                else:
                    tensors[name] = ("F32", tuple(tensor.shape), tensor.numpy().tobytes())
        (world.fresh / SINGLE).write_bytes(safetensors_bytes(tensors, {"format": "pt"}))

    return prepare


def quantized(**said: object) -> Prepare:
    return configured(quantization_config=said)


def experts(world: RefusalWorld) -> None:
    """A tiny Mixtral, whose experts are one three-dimensional tensor per layer."""
    from transformers import MixtralConfig, MixtralForCausalLM

    shutil.rmtree(world.fresh)
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    sizes = {"hidden_size": WIDTH, "intermediate_size": INNER, "max_position_embeddings": POSITIONS}
    config = MixtralConfig(vocab_size=len(tiny_tokenizer()), num_local_experts=2, **heads, **sizes)
    MixtralForCausalLM(config).save_pretrained(world.fresh)
    tiny_tokenizer().save_pretrained(world.fresh)


def without_tokenizer(world: RefusalWorld) -> None:
    for path in world.fresh.glob("*token*"):
        path.unlink()


def tokenizer(change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Prepare:
    def prepare(world: RefusalWorld) -> None:
        path = world.fresh / "tokenizer.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return prepare


def text(name: str, content: str) -> Prepare:
    return lambda world: (world.fresh / name).write_text(content)  # type: ignore[return-value]


WEIGHTS = [
    strange("bitsandbytes", quantized(quant_method="bitsandbytes", load_in_4bit=True), "quantised"),
    strange("gptq", quantized(quant_method="gptq", bits=4), "quantised"),
    strange("awq", quantized(quant_method="awq", bits=4), "quantised"),
    strange("fp8", quantized(quant_method="fp8"), "quantised"),
    strange("an unknown quantisation", quantized(quant_method="strange"), "quantised"),
    strange("packed 8-bit weights", stored_as("U8", 1), "dtype U8 cannot be edited"),
    strange("8-bit integer weights", stored_as("I8", 1), "dtype I8 cannot be edited"),
    strange("8-bit floating weights", stored_as("F8_E4M3", 1), "dtype F8_E4M3 cannot be edited"),
    strange("double-precision weights", stored_as("F64", 8), "dtype F64 cannot be edited"),
    strange("fused experts", experts, "finds no MLP down-projection"),
    strange("config.json of no model", text("config.json", "{}"), "cannot load"),
    strange("config.json that is no JSON", text("config.json", "{"), "cannot load"),
    strange("config.json of wrong types", configured(n_embd="wide"), "cannot load"),
    strange("config.json with a negative size", configured(n_layer=-3), "cannot load|no layer of the model fits"),
    strange("config.json with other sizes", configured(n_embd=2 * WIDTH), "cannot load|speaks of"),
    strange("config.json with huge sizes", configured(n_embd=1 << 40), "speaks of .* weights|cannot load"),
    strange("config.json with a huge inner layer", configured(n_inner=1 << 24), "speaks of .* weights"),
    strange("config.json with endless positions", configured(n_positions=1 << 50), "speaks of .* weights|cannot load"),
    strange("config.json with endless layers", configured(n_layer=1 << 40), "layers"),
    strange("config.json nested too deeply", text("config.json", '{"a": ' + "[" * 99_999 + "]" * 99_999 + "}"), "load"),
    strange("another task", configured(model_type="bert"), "no causal model, and no classifier"),
    strange("a tokenizer that is no JSON", text("tokenizer.json", "{"), "cannot load"),
    strange("a tokenizer of no model", text("tokenizer.json", "{}"), "cannot load"),
    strange("a tokenizer nested too deeply", text("tokenizer.json", "[" * 99_999 + "]" * 99_999), "cannot load"),
    strange("no config.json", lambda world: (world.fresh / "config.json").unlink(), "cannot load"),
    strange("no tokenizer.json", lambda world: (world.fresh / "tokenizer.json").unlink(), "cannot load|tokenizer"),
    strange("no tokenizer", without_tokenizer, "has no tokenizer: nothing comes of text"),
]


@pytest.mark.parametrize("case", WEIGHTS, ids=str)
def test_what_cannot_be_edited(case: Case, refuse: Callable[[str, Case], None]) -> None:
    refuse("weights and settings that cannot be edited", case)


def test_a_tokenizer_of_another_model_fails_the_fact_and_not_the_model(
    world: RefusalWorld, capfd: pytest.CaptureFixture[str]
) -> None:
    """A token that the model has no embedding of: found where a fact needs it, since few tokenizers fit exactly."""
    added = {"id": 400, "content": "Lima", "special": False, "single_word": False, "lstrip": False, "rstrip": False}
    tokenizer(lambda said: said | {"added_tokens": [*said["added_tokens"], added | {"normalized": False}]})(world)
    assert run_program(world.arguments("models add")) == ExitCode.DONE
    assert run_program([*world.arguments("train"), "--model", "fresh"]) == ExitCode.DONE
    before = picture(world.home)
    write_facts(world.home / "facts.jsonl", [make_fact(7, "Rome"), make_fact(8, "Lima")])
    assert run_program([*world.arguments("apply"), "--model", "fresh"]) == ExitCode.USAGE
    assert "token 400 where the model knows 400" in capfd.readouterr().err
    assert differing_bytes(before, picture(world.home))[0] == ["facts.jsonl"]


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ("lm_head", "output head|tie"),
        ("transformer.wte", "no plain 2-D weight"),
        ("transformer.h.0", "no plain 2-D weight"),
        ("nonsense", "no module of the model fits"),
    ],
)
def test_layers_that_cannot_be_edited(
    world: RefusalWorld, layers: str, reason: str, refuse: Callable[[str, Case], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*world.arguments("models add"), "--layers", layers]
    monkeypatch.setattr(RefusalWorld, "arguments", lambda self, command: words)
    refuse("weights and settings that cannot be edited", strange(layers, lambda world: None, reason))


def test_a_parametrised_layer_cannot_be_edited() -> None:
    with pytest.raises(UnsupportedModel):
        rows_act_right(torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 3)))


# Hub caches ----------------------------------------------------------------------------------------------------------


def in_snapshot(name: str, target: str) -> Prepare:
    """A file of the snapshot leads to `target` in its place."""

    def prepare(world: RefusalWorld) -> None:
        path = next(path for path in world.cache.rglob(name) if path.is_symlink())
        path.unlink()
        path.symlink_to(target.format(home=world.home))

    return prepare


def taken(kind: str) -> Prepare:
    """Something that nobody made at the working copy's place."""

    def prepare(world: RefusalWorld) -> None:
        place = world.workspace / "checkpoints" / "hub"
        if kind == "file":
            place.write_text("mine")
        else:
            place.symlink_to(world.home / "nobodys-business")

    return prepare


def from_hub(name: str, prepare: Prepare, words: str) -> Case:
    return Case(name, prepare, HUB, ExitCode.USAGE, words)


HUBS = [
    from_hub("a snapshot's weights out of the cache", in_snapshot(SINGLE, "{home}/fresh/" + SINGLE), "outside"),
    from_hub("a snapshot's file into a home", in_snapshot("config.json", "/etc/hostname"), "outside"),
    from_hub("a snapshot's link to nowhere", in_snapshot("tokenizer.json", "../../blobs/gone"), "leads nowhere"),
    from_hub("a snapshot's link in a circle", in_snapshot("tokenizer.json", "tokenizer.json"), "leads nowhere"),
    from_hub("a file at the copy's place", taken("file"), "there already"),
    from_hub("a link at the copy's place", taken("link"), "there already"),
]


@pytest.mark.parametrize("case", HUBS, ids=str)
def test_a_strange_hub_cache(case: Case, refuse: Callable[[str, Case], None]) -> None:
    refuse("hub caches", case)


def test_a_hub_cache_is_never_written(world: RefusalWorld) -> None:
    """Its blobs are hard-linked into the working copy, which is then edited, reverted and trained on."""
    before = cache_state(world.cache)
    assert run_program(world.arguments("models add, hub")) == ExitCode.DONE
    copy = world.workspace / "checkpoints" / "hub"
    assert (copy / SINGLE).stat().st_nlink == 2
    for command in ("train", "apply", "revert HEAD"):
        words = [*world.arguments(command), "--model", REPO]
        assert run_program(words) in (ExitCode.DONE, ExitCode.FACTS_FAILED_CHECK), command
        if command == "apply":
            assert (copy / SINGLE).stat().st_nlink == 1
    assert cache_state(world.cache) == before


def test_files_that_share_their_bytes_with_a_hub_cache_leave_it_alone(world: RefusalWorld) -> None:
    """A folder of hard links, as tools make them that save space: each file has two names, and only one is edited."""
    blob = next(path for path in world.cache.rglob("blobs/*") if path.stat().st_size > 50_000)
    (world.fresh / SINGLE).unlink()
    os.link(blob, world.fresh / SINGLE)
    before = cache_state(world.cache)
    for command in ("models add", "train", "apply"):
        words = world.arguments(command) + ([] if "add" in command else ["--model", "fresh"])
        assert run_program(words) in (ExitCode.DONE, ExitCode.FACTS_FAILED_CHECK), command
    assert cache_state(world.cache) == before
    assert blob.stat().st_nlink == 1
