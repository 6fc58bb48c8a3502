"""Where a model goes: a pure function of sizes and free memory; and what is refused before a weight is loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from family_models import FAMILIES, save_family_model
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny_models import TINY_TRAINING, everything, fact_set, make_facts, save_tiny_model, world_of

from malmen_cli.errors import ExitCode, UsageError
from malmen_cli.language_models.edited_layers import edited_layers
from malmen_cli.language_models.footprint import Job, plan_memory
from malmen_cli.language_models.host_memory import free_on_host
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.loading import empty_model, read_config
from malmen_cli.language_models.placement import (
    NoRoom,
    Placement,
    Unit,
    check_device,
    free_memory,
    place,
    require_room,
    single_device,
    spread,
    units_of,
)
from malmen_cli.ledger import Ledger, create_workspace
from malmen_cli.operations.apply import ApplyOptions, apply_facts
from malmen_cli.operations.evaluated import EvaluationOptions
from malmen_cli.operations.evaluation import evaluate_file
from malmen_cli.operations.models import register
from malmen_cli.operations.plan import plan_facts
from malmen_cli.operations.train import train_editor
from malmen_cli.operations.trial import attempt


def blocks(sizes: list[int], movable: int) -> list[Unit]:
    return [Unit((f"h.{i}",), size, i < movable) for i, size in enumerate(sizes)]


def load_of(units: list[Unit], placement: Placement) -> dict[str, int]:
    """Bytes per device."""
    if placement.device_map is None:
        return {placement.device: sum(unit.size for unit in units)}
    found: dict[str, int] = {}
    for unit in units:
        [device] = {placement.device_map[name] for name in unit.modules}
        found[device] = found.get(device, 0) + unit.size
    return found


class TestSpread:
    def test_the_whole_goes_to_the_gpu_with_most_room(self) -> None:
        free = {"cpu": 100, "cuda:0": 30, "cuda:1": 40}
        assert spread(blocks([10, 10, 10], 1), free) == Placement("cuda:1")

    def test_else_it_is_spread_over_gpus_the_head_where_the_work_is(self) -> None:
        free = {"cpu": 100, "cuda:0": 25, "cuda:1": 40}
        found = spread(blocks([10] * 6, 2), free)
        assert found.device == "cuda:1"
        assert found.device_map == {f"h.{i}": "cuda:0" if i < 2 else "cuda:1" for i in range(6)}

    def test_else_the_first_blocks_stay_in_cpu_memory(self) -> None:
        # One of the offloaded blocks must find room beside the resident ones.
        found = spread(blocks([10] * 6, 4), {"cpu": 100, "cuda:0": 45})
        assert found.device_map == {f"h.{i}": "cpu" if i < 3 else "cuda:0" for i in range(6)}

    def test_what_is_edited_and_all_above_it_never_does(self) -> None:
        assert spread(blocks([10] * 6, 2), {"cpu": 100, "cuda:0": 45}) == Placement("cpu")

    def test_cpu_memory_must_hold_what_is_offloaded(self) -> None:
        assert spread(blocks([10] * 6, 4), {"cpu": 29, "cuda:0": 45}) == Placement("cpu")

    def test_room_for_the_work_is_left(self) -> None:
        assert spread(blocks([10, 10], 1), {"cpu": 100, "cuda:0": 20}, 0) == Placement("cuda:0")
        assert spread(blocks([10, 10], 1), {"cpu": 100, "cuda:0": 20}, 1) == Placement("cpu")

    def test_without_a_gpu_it_is_the_cpu(self) -> None:
        assert spread(blocks([10, 10], 1), {"cpu": 1}) == Placement("cpu")

    @given(
        sizes=st.lists(st.integers(0, 50), min_size=1, max_size=12),
        movable=st.integers(0, 12),
        gpus=st.lists(st.integers(0, 200), max_size=4),
        cpu=st.integers(0, 600),
        working=st.integers(0, 40),
    )
    def test_whatever_it_chooses_fits_and_keeps_to_the_rules(
        self, sizes: list[int], movable: int, gpus: list[int], cpu: int, working: int
    ) -> None:
        units = blocks(sizes, min(movable, len(sizes) - 1))  # the last unit holds the head
        free = {"cpu": cpu} | {f"cuda:{i}": size for i, size in enumerate(gpus)}
        found = spread(units, free, working)
        assert found == spread(units, free, working)
        if found == Placement("cpu"):
            # No GPU takes the whole.
            assert all(sum(sizes) + working > size for size in gpus)
            return
        loads = load_of(units, found)
        assert found.device == max(free.keys() - {"cpu"}, key=lambda gpu: (free[gpu], -int(gpu[5:])))
        largest = max((unit.size for unit in units if unit.movable), default=0) if "cpu" in loads else 0
        for device, load in loads.items():
            visiting = 0 if device == "cpu" else largest
            assert load + visiting + (working if device == found.device else 0) <= free[device]
        if found.device_map is None:
            return
        places = [found.device_map[unit.modules[0]] for unit in units]
        assert len(set(places)) > 1
        assert all(unit.movable for unit, device in zip(units, places, strict=True) if device == "cpu")
        # Each device has neighbours, and what is offloaded comes first.
        borders = [a for a, b in pairwise(places) if a != b]
        assert len(borders) == len(set(places)) - 1
        assert "cpu" not in places or places[0] == "cpu"

    @given(sizes=st.lists(st.integers(1, 50), min_size=2, max_size=10), gpus=st.integers(1, 4))
    def test_more_memory_never_sends_it_to_the_cpu(self, sizes: list[int], gpus: int) -> None:
        units = blocks(sizes, 0)
        free = {"cpu": 0} | {f"cuda:{i}": 60 for i in range(gpus)}
        assume(spread(units, free) != Placement("cpu"))
        assert spread(units, {name: size + 25 for name, size in free.items()}) != Placement("cpu")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_units_are_the_whole_model_and_edited_blocks_stay(family: str, tmp_path: Path) -> None:
    folder = save_family_model(tmp_path / "model", family)
    config = read_config(folder)
    model = empty_model(folder, config)
    edited = {layer.name for layer in edited_layers(model, config.model_type, None)}
    units = units_of(model, edited, torch.float32)
    names = [name for unit in units for name in unit.modules]
    assert len(names) == len(set(names))

    def held(path: str) -> list[Unit]:
        return [unit for unit in units if any(path == name or path.startswith(f"{name}.") for name in unit.modules)]

    assert all(len(held(path)) == 1 for path in model.state_dict())
    assert all(not held(name)[0].movable for name in edited)
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    for path, parameter in model.named_parameters(remove_duplicate=False):
        if head is not None and parameter is head.weight:
            assert not held(path)[0].movable, path
    # In the order that blocks run, nothing movable follows what is not.
    in_blocks = [unit.movable for unit in units if unit.modules[0].rpartition(".")[2].isdigit()]
    assert in_blocks == sorted(in_blocks, reverse=True)
    unique = {id(x): x.numel() * x.element_size() for x in [*model.parameters(), *model.buffers()]}
    assert sum(unit.size for unit in units) == sum(unique.values())


def test_a_model_is_placed_from_its_configuration_alone(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", "llama", layers=6)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    size = sum(unit.size for unit in units_of(empty_model(folder, read_config(folder)), set(), torch.float32))
    assert place(folder, "auto", free={"cpu": size, "cuda:0": size}) == Placement("cuda:0")
    found = place(folder, "auto", free={"cpu": size, "cuda:0": size - 1})
    assert found.device == "cuda:0" and found.device_map is not None
    # The embeddings, and besides a block, so that they have room on the GPU while they are used.
    offloaded = {name for name, device in found.device_map.items() if device == "cpu"}
    assert offloaded == {"model.embed_tokens", "model.layers.0"}
    first = ["model.layers.0.mlp.down_proj"]
    kept = place(folder, "auto", free={"cpu": size, "cuda:0": size - 1}, resident=first)
    assert kept == Placement("cpu")
    assert place(folder, "cpu", free={"cpu": 0}) == Placement("cpu")
    # The work must have room beside the weights.
    job = Job("apply", rank=4, blocks=1, preserved_keys=0)
    needed = size + plan_memory(folder, None, job).working
    for more, where in ((0, "cuda:0"), (-1, "cpu")):
        found = place(folder, "auto", free={"cpu": 0, "cuda:0": needed + more}, job=job)
        assert found == Placement(where)


class TestDevices:
    @pytest.mark.parametrize("name", ["gpu", "cuda:99", "cuda:", "meta", "xpu", "", "cpu:x"])
    def test_what_is_not_there_is_refused_in_words(self, name: str) -> None:
        with pytest.raises(UsageError, match="device") as caught:
            check_device(name)
        assert caught.value.remedy == "Use --device cpu or auto."

    def test_auto_is_the_cpu_where_there_is_no_gpu(self) -> None:
        if torch.cuda.is_available():
            assert check_device("auto") == "auto" and single_device("auto").startswith("cuda:")
        else:
            assert check_device("auto") == single_device("auto") == "cpu"


class TestRefusal:
    NEEDED: Mapping[str, int] = {"weights": 13_000_000_000, "solve": 1_200_000_000, "editor": 0}

    def test_says_what_is_needed_part_by_part_and_what_is_free(self) -> None:
        with pytest.raises(NoRoom) as caught:
            require_room(Placement("cpu"), self.NEEDED, {"cpu": 8_000_000_000})
        assert caught.value.message == (
            "the model needs 14.2 GB (weights 13.0 GB, solve 1.2 GB), and there is 8.0 GB of free memory"
        )
        assert caught.value.exit_code == ExitCode.FAILED

    def test_a_gpu_too_small_has_other_ways_out(self) -> None:
        with pytest.raises(NoRoom, match="memory free on cuda:1") as caught:
            require_room(Placement("cuda:1"), self.NEEDED, {"cpu": 90_000_000_000, "cuda:1": 8_000_000_000})
        assert caught.value.remedy is not None
        assert "--device auto" in caught.value.remedy and "--device cpu" in caught.value.remedy

    def test_what_just_fits_is_not_refused(self) -> None:
        require_room(Placement("cpu"), self.NEEDED, {"cpu": sum(self.NEEDED.values())})


class TestHostMemory:
    def write(self, folder: Path, **files: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (folder / name.replace("__", ".")).write_text(f"{value}\n")

    def free(self, tmp_path: Path, line: str) -> int:
        (tmp_path / "own").write_text(line)
        return free_on_host(tmp_path / "groups", tmp_path / "own")

    def test_a_control_group_leaves_what_its_limit_leaves(self, tmp_path: Path) -> None:
        group = tmp_path / "groups" / "user" / "job"
        self.write(tmp_path / "groups" / "user", memory__max=9000, memory__current=1000, memory__swap__max=0)
        self.write(group, memory__max="max", memory__current=100)
        assert self.free(tmp_path, "0::/user/job\n") == 8000
        self.write(group, memory__max=5000, memory__current=3000, memory__swap__max=0)
        assert self.free(tmp_path, "0::/user/job\n") == 2000
        self.write(group, memory__stat="anon 1\ninactive_file 400\nactive_file 50")
        assert self.free(tmp_path, "0::/user/job\n") == 2450

    def test_version_one_too(self, tmp_path: Path) -> None:
        group = tmp_path / "groups" / "memory" / "job"
        self.write(group, memory__limit_in_bytes=0, memory__usage_in_bytes=0)
        without = self.free(tmp_path, "4:cpu:/job\n")
        assert self.free(tmp_path, "5:memory:/job\n") < without

    def test_nonsense_and_no_groups_at_all_change_nothing(self, tmp_path: Path) -> None:
        found = self.free(tmp_path, "\x00::\n:::\n")
        assert found > 1 << 20
        self.write(tmp_path / "groups", memory__max="many", memory__current="")
        assert self.free(tmp_path, "0::/\n") > 1 << 20
        assert set(free_memory()) >= {"cpu"}


@contextmanager
def data_limit(more: int) -> Iterator[None]:
    """This process may take so many bytes more, and sees it."""
    import resource

    import psutil

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (psutil.Process().memory_info().data + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not hold a process to its data limit")
def test_every_command_that_loads_a_model_refuses_one_too_large_and_writes_nothing(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = save_tiny_model(tmp_path / "model")
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=768, n_layer=3, n_head=2, n_positions=64, vocab_size=400)).save_pretrained(folder)
    world = world_of(folder)
    facts = fact_set(make_facts(2))
    before = everything(world)
    with world.ledger() as (ledger, model):
        LanguageModel(folder)  # with the memory that there is
        with data_limit(32 << 20):
            with pytest.raises(NoRoom, match="weights 8"):
                apply_facts(ledger, model, facts, ApplyOptions(), "malmen apply")
            with pytest.raises(NoRoom, match="weights 8"):
                plan_facts(ledger, model, facts, None, attempt(ApplyOptions()))
            with pytest.raises(NoRoom, match="weights 8"):
                evaluate_file(ledger, model, facts, EvaluationOptions())
            with pytest.raises(NoRoom, match="editor"):
                train_editor(ledger, model, facts, TINY_TRAINING)
    assert everything(world) == before
    (tmp_path / "another").mkdir()
    with (
        Ledger.open(create_workspace(tmp_path / "another"), writing=True) as ledger,
        data_limit(32 << 20),
        pytest.raises(NoRoom, match="weights 8"),
    ):
        register(ledger, "large", folder)
