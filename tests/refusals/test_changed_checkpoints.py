"""R8: a checkpoint that is not as the ledger left it is refused, whatever was changed and by whichever verb."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from crafted_ledgers import EDITED
from refusal_world import SHARDS, RefusalWorld, a_socket, flip
from refusals import CHECKPOINT, Case, Prepare
from tiny_models import save_tiny_model

from malmen_cli.checkpoint.manifest import INDEX, SINGLE
from malmen_cli.checkpoint.safetensors_file import read_header
from malmen_cli.errors import ExitCode

OTHER = "transformer.h.0.ln_1.weight"


def changed(name: str, prepare: Prepare, words: str = "") -> Case:
    difference = rf"is not as the ledger left it: .*{words}"
    listed = {"recover": rf"tiny: .*{words}[\s\S]*tiny is not as its ledger left it"}
    return Case(name, prepare, CHECKPOINT, ExitCode.WRONG_BASE, difference, said=listed)


def a_bit(tensor: str) -> Prepare:
    def prepare(world: RefusalWorld) -> None:
        for name in SHARDS:
            slot = read_header(world.model / name).slots.get(tensor)
            if slot is not None:
                flip(world.model / name, slot.start)

    return prepare


def file(name: str, change: Callable[[Path], object]) -> Prepare:
    return lambda world: change(world.model / name)  # type: ignore[return-value]


def another_key(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"another": 1}))


def put_in_place(**kind: object) -> Prepare:
    """Another model's weights under this one's names."""

    def prepare(world: RefusalWorld) -> None:
        save_tiny_model(world.home / "another", sharded=True, **kind)  # type: ignore[arg-type]
        for name in SHARDS:
            shutil.move(world.home / "another" / name, world.model / name)
        shutil.rmtree(world.home / "another")

    return prepare


def swapped(world: RefusalWorld) -> None:
    first, second = (world.model / name for name in SHARDS[:2])
    first.rename(world.model / "third")
    second.rename(first)
    (world.model / "third").rename(second)


def in_place_of(name: str, make: Callable[[Path], object]) -> Prepare:
    def prepare(world: RefusalWorld) -> None:
        (world.model / name).unlink()
        make(world.model / name)

    return prepare


def linked_to_a_copy(path: Path) -> None:
    moved = path.parent.parent / "moved"
    shutil.copyfile(path.parent.parent.parent / "saved" / "model" / path.name, moved)
    path.symlink_to(moved)


def single_file(world: RefusalWorld) -> None:
    """transformers would load it in place of the shards."""
    shutil.copyfile(world.fresh / SINGLE, world.model / SINGLE)


def added(name: str, content: str = "{}") -> Prepare:
    return lambda world: (world.model / name).write_text(content)  # type: ignore[return-value]


def gone(world: RefusalWorld) -> None:
    world.model.rename(world.home / "moved")


def lost_beside_damage(world: RefusalWorld) -> None:
    (world.model / SHARDS[0]).unlink()
    flip(world.model / SHARDS[1], -1)
    another_key(world.model / "config.json")


CASES = [
    changed("one bit of an edited tensor", a_bit(EDITED), EDITED),
    changed("one bit of another tensor", a_bit(OTHER), OTHER),
    changed("one bit of a header", file(SHARDS[0], lambda path: flip(path, 9)), "the header of"),
    changed("a shard cut short", file(SHARDS[1], lambda path: os.truncate(path, 400)), "has 400 bytes"),
    changed(
        "a shard grown", file(SHARDS[1], lambda path: path.write_bytes(path.read_bytes() + b"\0")), "bytes, expected"
    ),
    changed("config.json", file("config.json", another_key), r"config\.json was changed"),
    changed("generation_config.json", file("generation_config.json", another_key), r"generation_config\.json was"),
    changed("tokenizer.json", file("tokenizer.json", lambda path: flip(path, 300)), r"tokenizer\.json was changed"),
    changed("special tokens", file("tokenizer_config.json", another_key), r"tokenizer_config\.json was changed"),
    changed("the index of shards", file(INDEX, another_key), r"index\.json was changed"),
    changed("another revision of the same shapes", put_in_place(seed=1), "tensor .* was changed"),
    changed("the same weights as bfloat16", put_in_place(dtype="bfloat16"), "bytes, expected"),
    changed("the base, put back behind the ledger", put_in_place(), "tensor .* was changed"),
    changed("two shards swapped", swapped, "safetensors"),
    changed("a shard missing", file(SHARDS[1], Path.unlink), "cannot be read"),
    changed("a shard renamed", file(SHARDS[1], lambda path: path.rename(path.with_name("model.2.safetensors")))),
    changed("the tokenizer missing", file("tokenizer.json", Path.unlink), r"tokenizer\.json is missing"),
    changed("a whole file added beside the shards", single_file, r"model\.safetensors was added"),
    changed("special tokens added", added("added_tokens.json"), r"added_tokens\.json was added"),
    changed("a chat template added", added("chat_template.jinja"), r"chat_template\.jinja was added"),
    changed("an adapter added", added("adapter_config.json"), r"adapter_config\.json was added"),
    changed("a shard, the tokenizer and another shard", lost_beside_damage, r"config\.json was changed"),
    changed("a link in place of a shard", in_place_of(SHARDS[0], linked_to_a_copy), "is a link"),
    changed("a pipe in place of a shard", in_place_of(SHARDS[0], os.mkfifo), "is not a regular file"),
    changed("a folder in place of a shard", in_place_of(SHARDS[0], Path.mkdir), "is not a regular file"),
    changed("a socket in place of a shard", in_place_of(SHARDS[0], a_socket), "cannot be read"),
    changed("a device in place of a shard", in_place_of(SHARDS[0], lambda path: path.symlink_to("/dev/zero"))),
    changed("a pipe in place of config.json", in_place_of("config.json", os.mkfifo), r"config\.json is missing"),
    Case("the folder gone", gone, CHECKPOINT, ExitCode.WRONG_BASE, "is gone|safetensors cannot be read"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_changed_checkpoint(case: Case, refuse: Callable[[str, Case], None]) -> None:
    refuse("a checkpoint changed behind the ledger", case)
