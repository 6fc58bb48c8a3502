"""What `malmen export` writes, loaded by the libraries it is for, on real tiny checkpoints."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from safetensors_folders import file_digests, names_in
from tiny_models import World, environment, load, make_fact, make_facts, make_world

from malmen_cli.checkpoint import check_checkpoint, digest_bytes, read_manifest
from malmen_cli.checkpoint.durable import TEMPORARY
from malmen_cli.errors import ExitCode, MalmenError, UsageError
from malmen_cli.facts import Fact
from malmen_cli.ledger import store
from malmen_cli.operations.export import Exported, export
from malmen_cli.operations.export_files import difference
from malmen_cli.operations.states import named_state
from malmen_cli.operations.tensors import to_bytes

Kind = Literal["full", "delta", "lora"]
HOSTILE = Fact("The [red] planet <script>\u202e\x1b[31m | is", "# Rome\n    ```", subject="planet")


@pytest.fixture(scope="module", params=["gpt2 float32", "gpt2 bfloat16", "llama float32", "llama bfloat16"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """#2 applies facts 0 to 2, #3 facts 3 and 4; sharded, with an untouched copy of the base beside the checkpoint."""
    family, dtype = request.param.split()
    world = make_world(tmp_path_factory.mktemp("world"), family, dtype=dtype, sharded=True)
    copy(world.checkpoint, world.checkpoint.with_name("base"))
    world.apply(*make_facts(3))
    world.apply(*make_facts(2, start=3))
    return world


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = make_world(tmp_path_factory.mktemp("world"))
    world.apply(*make_facts(3))
    return world


def copy(source: Path, target: Path) -> None:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())


def base_of(world: World) -> Path:
    return world.checkpoint.with_name("base")


def write(world: World, target: Path, kind: Kind = "full", entry: str = "HEAD", *, rank: int | None = None) -> Exported:
    with world.ledger() as (ledger, model):
        with ledger.read() as db:
            state = named_state(db, model, entry)
        return export(ledger, model, state, target, kind=kind, rank=rank)


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def logits(model: Any, folder: Path) -> torch.Tensor:
    """Logits of a few prompts, one after another, in the model's dtype."""
    tokenizer = load(folder, float64=False).tokenizing.tokenizer
    with torch.no_grad():
        found = [
            model(**tokenizer(fact.prompt, return_tensors="pt", return_token_type_ids=False)).logits[0, -1]
            for fact in make_facts(6)
        ]
    return torch.stack(found).double()


class TestFull:
    def test_is_the_checkpoint_of_the_head(self, world: World, tmp_path: Path) -> None:
        before = file_digests(world.checkpoint)
        write(world, tmp_path / "out")
        found = file_digests(tmp_path / "out")
        assert found.keys() - before.keys() == {"README.md", "malmen.json"}
        assert before.keys() - found.keys() == {".malmen.json"}
        assert all(found[name] == before[name] for name in before.keys() & found.keys())
        assert file_digests(world.checkpoint) == before

    def test_of_an_earlier_entry_is_loaded_as_that_state(self, world: World, tmp_path: Path) -> None:
        exported = write(world, tmp_path / "out", entry="#2")
        with world.ledger() as (ledger, model), ledger.read() as db:
            state = store.state(db, model.id, 2)
            head = store.state(db, model.id)
        assert check_checkpoint(tmp_path / "out", model.manifest, state) == []
        assert check_checkpoint(world.checkpoint, model.manifest, head) == []
        told = {name: about["after"] for name, about in exported.record["tensors"].items()}
        assert told == state
        assert load(tmp_path / "out").model is not None

    def test_of_the_base_is_a_copy_of_the_base(self, world: World, tmp_path: Path) -> None:
        exported = write(world, tmp_path / "out", entry="base")
        found = file_digests(tmp_path / "out")
        assert {name: found[name] for name in file_digests(base_of(world))} == file_digests(base_of(world))
        assert read_manifest(tmp_path / "out").digest == exported.record["base_digest"]  # editors would fit it
        assert exported.record["tensors"] == {} and exported.record["facts"]["count"] == 0
        card = (tmp_path / "out" / "README.md").read_text()
        assert "a copy of the base" in card and "- written by malmen " in card
        assert "editor" not in card and "edited tensors" not in card and "MALMEN" not in card
        with pytest.raises(UsageError, match="standard output"):
            write(world, Path("-"))

    def test_of_a_tampered_checkpoint_is_refused(self, tmp_path: Path) -> None:
        world = make_world(tmp_path / "world")
        world.apply(*make_facts(3))
        path = world.checkpoint / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(MalmenError) as refusal:
            write(world, tmp_path / "out")
        assert refusal.value.exit_code == ExitCode.WRONG_BASE
        assert names_in(tmp_path) == ["world"]
        write(world, tmp_path / "delta", "delta")  # which is made from the objects alone


class TestDelta:
    def test_base_plus_delta_rounds_to_the_edited_bytes(self, world: World, tmp_path: Path) -> None:
        write(world, tmp_path / "out", "delta")
        deltas = load_file(tmp_path / "out" / "delta.safetensors")
        told = json.loads((tmp_path / "out" / "delta.json").read_text())
        base, edited = weights_in(base_of(world)), weights_in(world.checkpoint)
        assert deltas.keys() == told["tensors"].keys() == {n for n in base if not torch.equal(base[n], edited[n])}
        for name, delta in deltas.items():
            about = told["tensors"][name]
            summed = (base[name].to(delta.dtype) + delta).to(base[name].dtype)
            assert to_bytes(summed) == to_bytes(edited[name])
            assert (about["before"], about["after"]) == (
                digest_bytes(to_bytes(base[name])),
                digest_bytes(to_bytes(edited[name])),
            )
            assert about["exact"] and about["shape"] == list(delta.shape)
            assert delta.dtype == {"F32": torch.float32, "F64": torch.float64}[about["delta_dtype"]]
        with world.ledger() as (ledger, model), ledger.read() as db:
            assert told["base_digest"] == model.base_digest
            assert told["entry"] == store.head(db, model.id).id
            assert told["active_digest"] == store.head(db, model.id).active_digest
        assert names_in(tmp_path / "out") == ["README.md", "delta.json", "delta.safetensors"]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
    def test_a_difference_gives_the_bytes_back_whatever_its_size(self, dtype: torch.dtype, scale: float) -> None:
        random = torch.Generator().manual_seed(0)
        base = torch.randn(200, 100, generator=random)
        edited = (base + scale * torch.randn(200, 100, generator=random)).to(dtype)
        edited[0, 0], edited[0, 1] = 0.0, -0.0
        base[0, :3] = 0.0
        base[0, 1] = -0.0
        delta, exact = difference(base.to(dtype), edited)
        assert exact
        assert to_bytes((base.to(dtype).to(delta.dtype) + delta).to(dtype)) == to_bytes(edited)
        if dtype != torch.float32:
            assert delta.dtype == torch.float32

    def test_what_no_float_can_express_is_said(self) -> None:
        delta, exact = difference(torch.tensor([1e30]), torch.tensor([1e-30]))
        assert not exact and delta.dtype == torch.float64


class TestLora:
    # peft reads a property that transformers has renamed.
    @pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
    def test_peft_gives_the_logits_of_the_edited_checkpoint(self, world: World, tmp_path: Path) -> None:
        from peft import PeftModel

        exported = write(world, tmp_path / "out", "lora")
        assert exported.record["relative_error"] <= 0.01 and exported.warnings == []
        base = load(base_of(world)).model
        wanted = logits(load(world.checkpoint).model, world.checkpoint)
        unedited = logits(base, world.checkpoint)
        adapted = PeftModel.from_pretrained(base, tmp_path / "out").to(torch.float64)
        assert sorted(adapted.targeted_module_names) == sorted(
            about["module"] for about in exported.record["tensors"].values()
        )
        error = (logits(adapted, world.checkpoint) - wanted).norm() / (unedited - wanted).norm()
        assert error <= 0.05
        # At the largest rank only float32 is in the way.
        write(world, tmp_path / "whole", "lora", rank=16)
        adapted = PeftModel.from_pretrained(load(base_of(world)).model, tmp_path / "whole").to(torch.float64)
        error = (logits(adapted, world.checkpoint) - wanted).norm() / (unedited - wanted).norm()
        assert error <= 1e-5
        # And merged into the weights, which is how the orientation could go wrong unseen.
        merged = adapted.merge_and_unload()
        error = (logits(merged, world.checkpoint) - wanted).norm() / (unedited - wanted).norm()
        assert error <= 1e-5

    def test_names_no_base_that_another_model_could_be_taken_for(
        self, small_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In a folder that holds the edited checkpoint under the ledger's name, which peft would load as the base."""
        from peft import AutoPeftModelForCausalLM

        write(small_world, tmp_path / "out", "lora")
        config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] is config["revision"] is None
        card = (tmp_path / "out" / "README.md").read_text()
        assert "malmen export base --model tiny --output BASE" in card
        copy(small_world.checkpoint, tmp_path / "tiny")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(OSError):  # what transformers says of a model without a name
            AutoPeftModelForCausalLM.from_pretrained("out")

    @pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
    def test_the_card_says_how_to_load_it(self, small_world: World, tmp_path: Path) -> None:
        """Its lines, run with what it says to put in place of BASE and ADAPTER."""
        write(small_world, tmp_path / "out", "lora", rank=16)
        write(small_world, tmp_path / "BASE", entry="base")
        card = (tmp_path / "out" / "README.md").read_text()
        code = card.split("## Load")[1].split("## Undo")[0].splitlines()
        code = [line.strip() for line in code if line.startswith("    ") and "malmen" not in line]
        text = "\n".join(code).replace("BASE", f"{tmp_path / 'BASE'}").replace("ADAPTER", f"{tmp_path / 'out'}")
        named: dict[str, Any] = {}
        exec(text, named)
        wanted = logits(load(small_world.checkpoint).model, small_world.checkpoint)
        adapted = logits(named["model"].to(torch.float64), small_world.checkpoint)
        assert (adapted - wanted).norm() / wanted.norm() <= 1e-4

    def test_a_rank_that_loses_much_is_warned_about(self, small_world: World, tmp_path: Path) -> None:
        exported = write(small_world, tmp_path / "out", "lora", rank=1)
        assert exported.record["rank"] == 1 and exported.record["relative_error"] > 0.01
        assert f"{exported.record['relative_error']:.1%}" in exported.warnings[0]
        config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert config["r"] == config["lora_alpha"] == 1
        tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
        assert {tensor.shape[0 if "lora_A" in name else 1] for name, tensor in tensors.items()} == {1}


@pytest.mark.parametrize("kind", ["full", "delta", "lora"])
class TestEveryKind:
    def test_carries_a_card_and_no_path_of_this_machine(self, small_world: World, tmp_path: Path, kind: Kind) -> None:
        exported = write(small_world, tmp_path / "out", kind)
        card = (tmp_path / "out" / "README.md").read_text()
        record = exported.record
        for text in (record["base_digest"], record["entry"], record["editor"], "arxiv.org/abs/2311.04661", "tiny"):
            assert text in card
        for fact in make_facts(3):
            assert f"    {fact.prompt} -> {fact.target}" in card
        assert "As the base model's" in card and "malmen verify" in card and "malmen revert" in card
        for path in (tmp_path / "out").iterdir():
            assert str(small_world.checkpoint.parent).encode() not in path.read_bytes()

    def test_is_refused_where_something_is(self, small_world: World, tmp_path: Path, kind: Kind) -> None:
        (tmp_path / "mine").write_text("kept")
        before = file_digests(tmp_path)
        with pytest.raises(MalmenError, match="is there already") as refusal:
            write(small_world, tmp_path, kind)
        assert refusal.value.exit_code == ExitCode.USAGE
        assert file_digests(tmp_path) == before

    def test_a_loop_of_links_is_told_in_words(self, small_world: World, tmp_path: Path, kind: Kind) -> None:
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(MalmenError):
            write(small_world, tmp_path / "loop", kind)

    def test_the_base_has_no_difference_to_itself(self, small_world: World, tmp_path: Path, kind: Kind) -> None:
        if kind == "full":
            write(small_world, tmp_path / "out", kind, "base")
            return
        with pytest.raises(MalmenError, match="nothing to export") as refusal:
            write(small_world, tmp_path / "out", kind, "base")
        assert refusal.value.exit_code == ExitCode.USAGE
        assert not names_in(tmp_path)

    def test_of_facts_that_are_hostile_has_a_harmless_card(self, tmp_path: Path, kind: Kind) -> None:
        world = make_world(tmp_path / "world")
        world.apply(HOSTILE, make_fact(1))
        write(world, tmp_path / "out", kind)
        card = (tmp_path / "out" / "README.md").read_text()
        assert "\x1b" not in card and "\u202e" not in card
        [line] = [line for line in card.splitlines() if "planet" in line]
        assert line.startswith("    ") and "# Rome" in line


def test_a_rank_is_for_adapters_only(small_world: World, tmp_path: Path) -> None:
    with pytest.raises(MalmenError, match="rank") as refusal:
        write(small_world, tmp_path / "out", rank=4)
    assert refusal.value.exit_code == ExitCode.USAGE and not names_in(tmp_path)


def test_an_interrupted_entry_is_settled_first(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world")
    world.apply(*make_facts(3))
    with world.ledger() as (ledger, _), ledger.write() as db:
        db.execute("UPDATE entries SET status = 'pending' WHERE number = 2")
    with pytest.raises(MalmenError, match="not settled") as refusal:
        write(world, tmp_path / "out", entry="base")
    assert "malmen recover" in (refusal.value.remedy or "")


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_killed_export_leaves_nothing_at_its_place(small_world: World, tmp_path: Path, kind: Kind) -> None:
    """Killed in the middle of the files, as a whole process; the next export to the same place succeeds."""
    die = f"""
import os, signal, sys
from malmen_cli.cli.main import main
sync, made = os.fsync, []
def fsync(descriptor):
    made.append(1)
    if len(made) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return sync(descriptor)
os.fsync = fsync
sys.argv = ["malmen", "export", "--as", {kind!r}, "--output", {str(tmp_path / "out")!r}]
sys.argv += ["--workspace", {str(small_world.workspace.root)!r}]
main()
"""
    done = subprocess.run([sys.executable, "-c", die], env=environment(), capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert names_in(tmp_path) == [f"{TEMPORARY}out"]
    write(small_world, tmp_path / "out", kind)
    assert names_in(tmp_path) == ["out"]


def test_an_interrupted_export_cleans_up(small_world: World, tmp_path: Path) -> None:
    wait = f"""
import os, sys, time
from malmen_cli.cli.main import main
sync = os.fsync
def fsync(descriptor):
    print("syncing", flush=True)
    time.sleep(30)
    return sync(descriptor)
os.fsync = fsync
sys.argv = ["malmen", "export", "--output", {str(tmp_path / "out")!r}]
sys.argv += ["--workspace", {str(small_world.workspace.root)!r}]
main()
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", wait], env=environment(), **pipes) as process:
        assert process.stdout.readline() == "syncing\n"
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == ExitCode.INTERRUPTED
        assert time.monotonic() - started < 20
    assert names_in(tmp_path) == []
