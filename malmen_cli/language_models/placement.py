"""Where a model goes: on one device, or over several GPUs and, of what needs no gradients, the CPU.

`auto` takes the GPU with most free memory where the whole fits there; else all GPUs, and then CPU memory for the first
blocks; else the CPU. Blocks that hold edited layers, everything above them and the head stay on GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from malmen_cli.errors import MalmenError, UsageError
from malmen_cli.language_models.edited_layers import edited_layers
from malmen_cli.language_models.footprint import Job, footprint, planned_model, stored_dtype, weight_bytes
from malmen_cli.language_models.loading import read_config


class NoRoom(MalmenError):
    """What a model needs is more than the memory that is free."""


@dataclass(frozen=True)
class Unit:
    """Modules that go to one place together, in the order in which they run.

    Attributes:
        modules: their paths. size: bytes. movable: nothing in it or below it is edited, so that no gradient goes
            through, and no weight of it is used elsewhere: it may stay in CPU memory.
    """

    modules: tuple[str, ...]
    size: int
    movable: bool


@dataclass(frozen=True)
class Placement:
    """Where a model goes.

    Attributes:
        device: where inputs, the editor and the solve are. device_map: module path -> device, of a model on several.
    """

    device: str
    device_map: dict[str, str] | None = None


def check_device(name: str) -> str:
    """The name of a device that is there, or `auto` where there is a choice: without a GPU that is the CPU.

    Raises:
        UsageError: no such device.
    """
    if name == "auto":
        return "auto" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(name).type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("models are edited on cpu, cuda, cuda:N or mps")
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {name}: {error}".splitlines()[0], remedy="Use --device cpu or auto.") from None
    return name


def single_device(name: str) -> str:
    """The device for work on single tensors: of `auto` the GPU with most free memory.

    Raises:
        UsageError: no such device.
    """
    name = check_device(name)
    if name != "auto":
        return name
    free = free_memory()
    return max((gpu for gpu in free if gpu != "cpu"), key=lambda gpu: free[gpu])


def place(
    folder: Path,
    device: str,
    *,
    layers: Sequence[str] | None = None,
    resident: Sequence[str] = (),
    dtype: torch.dtype | None = None,
    job: Job | None = None,
    free: Mapping[str, int] | None = None,
) -> Placement:
    """Where the model of a folder goes. Only `auto` on a machine with GPUs looks at the model's configuration.

    Args:
        device: cpu, cuda, cuda:N, mps or auto. layers: globs of the edited ones. resident: paths of other modules whose
            weights will be changed. job: what is to be done; None: nothing that takes memory.
        free: bytes per device; None asks the machine.

    Raises:
        UsageError: no such device. UnsupportedModel: transformers cannot build the model.
    """
    if free is None:
        device = check_device(device)
        if device != "auto":
            return Placement(device)
        free = free_memory()
    elif device != "auto":
        return Placement(device)
    config = read_config(folder)
    model = planned_model(folder, config)
    edited = edited_layers(model, config.model_type, layers)
    dtype = dtype or stored_dtype(folder, config)
    units = units_of(model, {layer.name for layer in edited} | set(resident), dtype)
    return spread(units, free, 0 if job is None else footprint(model, edited, job, dtype).working)


def spread(units: Sequence[Unit], free: Mapping[str, int], working: int = 0) -> Placement:
    """The placement that `auto` chooses.

    GPUs are filled from the last unit back, the one with most free memory first, each with neighbours only, so that a
    batch crosses as few borders as there are; what is left over at the beginning goes to CPU memory if all of it is
    movable, each piece being copied to a GPU for its turn. The first GPU keeps `working` bytes free.

    Args:
        units: in the order they run. free: bytes per device, `cpu` and `cuda:N`.
    """
    gpus = sorted((name for name in free if name != "cpu"), key=lambda name: (-free[name], name))
    total = sum(unit.size for unit in units)
    if gpus and total + working <= free[gpus[0]]:
        return Placement(gpus[0])
    visiting = max((unit.size for unit in units if unit.movable), default=0)
    for offloads in (False, True):
        # A unit that is offloaded visits a GPU while it runs: that must have room for it.
        room = {name: free[name] - (visiting if offloads else 0) for name in gpus}
        if gpus:
            room[gpus[0]] -= working
        places, left = _filled(units, gpus, room)
        rest = units[:left]
        fits = all(unit.movable for unit in rest) and sum(unit.size for unit in rest) <= free.get("cpu", 0)
        # The head is where the work is: else neither has room for the other.
        if gpus and places.get(len(units) - 1) == gpus[0] and (offloads or not left) and fits:
            places |= dict.fromkeys(range(left), "cpu")
            found = {name: places[i] for i, unit in enumerate(units) for name in unit.modules}
            return Placement(gpus[0], found) if len(set(found.values())) > 1 else Placement(gpus[0])
    return Placement("cpu")


def _filled(units: Sequence[Unit], gpus: Sequence[str], room: Mapping[str, int]) -> tuple[dict[int, str], int]:
    """Unit -> GPU from the last unit back, and how many of the first units found no room."""
    places: dict[int, str] = {}
    left = len(units)
    for gpu in gpus:
        free = room[gpu]
        while left and units[left - 1].size <= free:
            left -= 1
            free -= units[left].size
            places[left] = gpu
    return places, left


def units_of(model: nn.Module, edited: set[str], dtype: torch.dtype) -> list[Unit]:
    """A model's blocks in the order they run, its embeddings first, and last all that is neither: norms, the head.

    Embeddings that share their weight with something else, the head above all, stay with that last unit.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    users: dict[int, set[str]] = {}
    for name, module in modules.items():
        for parameter in module._parameters.values():
            if parameter is not None:
                users.setdefault(id(parameter), set()).add(name)
    blocks = _blocks(modules)
    inside = tuple(f"{name}." for name in blocks)
    shared = {name for names in users.values() if len(names) > 1 for name in names}
    alone = [
        name
        for name, module in modules.items()
        if isinstance(module, nn.Embedding) and not name.startswith(inside) and name not in shared
    ]
    units = [Unit((name,), weight_bytes(model, dtype, [modules[name]]), True) for name in alone]
    movable = True
    for name in blocks:
        here = [path for path in modules if path == name or path.startswith(f"{name}.")]
        movable = movable and not edited.intersection(here)
        units.append(
            Unit((name,), weight_bytes(model, dtype, [modules[name]]), movable and not shared.intersection(here))
        )
    taken = (*(f"{name}." for name in alone), *inside)
    rest = [
        f"{name}.{own}".lstrip(".")
        for name, module in modules.items()
        if name not in {*alone, *blocks} and not name.startswith(taken)
        for own in (*module._parameters, *module._buffers)
    ]
    owners = sorted({path.rpartition(".")[0] for path in rest})
    total = weight_bytes(model, dtype)
    # Whatever stands in the root itself is named one by one: the root's own name would stand for the whole model.
    named = [name for name in owners if name and not any(other.startswith(f"{name}.") for other in modules)]
    named += [path for path in rest if path.rpartition(".")[0] not in named]
    return [*units, Unit(tuple(named), max(0, total - sum(unit.size for unit in units)), False)]


def _blocks(modules: Mapping[str, nn.Module]) -> list[str]:
    """Paths of the members of the outermost lists of modules, in order."""
    lists: dict[str, int] = {}
    for name, module in modules.items():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{other}.") for other in lists):
            lists[name] = len(module)
    return [f"{name}.{number}" for name, count in lists.items() for number in range(count)]


def require_room_for(
    folder: Path, config: Any, placement: Placement, dtype: torch.dtype | None, needs: Mapping[str, int]
) -> None:
    """`require_room` for a model's weights and the bytes that the work on it takes besides.

    Raises:
        NoRoom: more than is free. UnsupportedModel: transformers cannot build the model.
    """
    free = free_memory(placement.device)
    held = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    # A number takes at least a byte in a file and at most eight in memory: mostly nothing need be built to see it fit.
    if 8 * held + sum(needs.values()) > min(free.values()):
        weights = weight_bytes(planned_model(folder, config), dtype or stored_dtype(folder, config))
        require_room(placement, {"weights": weights, **needs}, free)


def require_room(placement: Placement, needed: Mapping[str, int], free: Mapping[str, int] | None = None) -> None:
    """Refuse a model that the memory which is free now cannot hold, before a weight is loaded.

    A model on several devices was placed by what they have free, and is not asked again.

    Args:
        needed: bytes by what they are for. free: bytes per device; None asks the machine.

    Raises:
        NoRoom: with what is needed, part by part, and what is free.
    """
    if placement.device_map is not None:
        return
    device = placement.device
    if free is None:
        free = free_memory(device)
    found = free.get(f"cuda:{torch.cuda.current_device()}" if device == "cuda" else device, free["cpu"])
    total = sum(needed.values())
    if total <= found:
        return
    parts = ", ".join(f"{name} {_size(size)}" for name, size in needed.items() if size)
    where = "free memory" if device == "cpu" else f"memory free on {device}"
    remedy = "End what else uses memory, or take a machine with more"
    remedy += "." if device == "cpu" else ", --device auto (more GPUs, and CPU memory), or --device cpu."
    raise NoRoom(f"the model needs {_size(total)} ({parts}), and there is {_size(found)} of {where}", remedy=remedy)


def free_memory(device: str = "auto") -> dict[str, int]:
    """Bytes that could be allocated now: `cpu` with its swap, and each `cuda:N` that can be asked, or that one alone.

    Asking a GPU takes some of its memory, so that none is asked where the work is elsewhere.
    """
    from malmen_cli.language_models.host_memory import free_on_host

    free = {"cpu": free_on_host()}
    if (device == "auto" or device.startswith("cuda")) and torch.cuda.is_available():
        one = torch.device(device).index if device.startswith("cuda:") else None
        numbers = (
            range(torch.cuda.device_count())
            if device == "auto"
            else [torch.cuda.current_device() if one is None else one]
        )
        for number in numbers:
            with suppress(RuntimeError):  # full, or another process's alone
                free[f"cuda:{number}"] = torch.cuda.mem_get_info(number)[0]
    return free


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
