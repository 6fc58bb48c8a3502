"""A state that gc has dropped can still be looked at and exported: it is solved again from the stored rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ledger_world import lose
from safetensors_folders import file_digests
from tiny_models import World, everything, make_facts, make_world

from malmen_cli.errors import VerificationFailed
from malmen_cli.ledger import Item, ObjectStore, collect, collectable, store, verify_ledger
from malmen_cli.ledger.recovery import recover
from malmen_cli.operations.diff import diff_states
from malmen_cli.operations.export import export
from malmen_cli.operations.rebuilding import rebuild
from malmen_cli.operations.solving import Solved
from malmen_cli.operations.states import named_state
from malmen_cli.operations.workbench import Workbench


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = make_world(tmp_path / "world")
    world.apply(*make_facts(3))
    return world


def drop(world: World) -> None:
    """A second apply, and gc, which then drops every tensor of the first one's state."""
    world.apply(*make_facts(2, start=3))
    with world.ledger() as (ledger, _):
        assert collect(ledger, collectable(ledger, ["states"]), "malmen gc")


def test_it_is_exported_as_it_was(world: World, tmp_path: Path) -> None:
    was = file_digests(world.checkpoint)["model.safetensors"]
    drop(world)
    before = everything(world)
    with world.ledger() as (ledger, model):
        with ledger.read() as db:
            state = named_state(db, model, "#2")
        export(ledger, model, state, tmp_path / "copy")
    assert file_digests(tmp_path / "copy")["model.safetensors"] == was
    assert everything(world) == before


def test_its_difference_has_figures(world: World) -> None:
    def figures() -> list[dict[str, float]]:
        with world.ledger() as (ledger, model), ledger.read() as db:
            a, b = named_state(db, model, "base"), named_state(db, model, "#2")
            return [dict(tensor.figures) for tensor in diff_states(ledger, model, a, b).tensors]

    before = figures()
    assert before and all(before)
    drop(world)
    assert figures() == before


@pytest.mark.parametrize("reader", ["export", "diff", "rebuild"])
def test_gc_beside_a_reader_is_no_loss(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reader: str
) -> None:
    """It drops the state after the reader has seen that its objects are there, and before it reads one."""

    def read() -> object:
        with world.ledger() as (ledger, model):
            with ledger.read() as db:
                base, state = named_state(db, model, "base"), named_state(db, model, "#2")
            if reader == "rebuild":
                return rebuild(ledger, model, state.entry)
            if reader == "diff":
                return [tensor.as_dict() for tensor in diff_states(ledger, model, base, state).tensors]
            folder = tmp_path / str(len(list(tmp_path.iterdir())))
            export(ledger, model, state, folder, kind="delta")
            return file_digests(folder)

    whole, dropped = ObjectStore.get, list[Item]()

    def get(store: ObjectStore, digest: str) -> bytes:
        if not dropped and digest in state:
            with world.ledger() as (ledger, _):
                dropped.extend(collect(ledger, collectable(ledger, ["states"]), "malmen gc"))
        return whole(store, digest)

    world.apply(*make_facts(2, start=3))
    expected = read()
    with world.ledger() as (ledger, _):
        state = {item.name for item in collectable(ledger, ["states"])}
    monkeypatch.setattr(ObjectStore, "get", get)
    assert read() == expected and dropped


@pytest.mark.parametrize("how", ["removed", "damaged"])
def test_what_was_lost_is_solved_again_too(world: World, how: str) -> None:
    """By whoever looks at the state, and by a revert to it, which puts the bytes back among the objects."""
    was = file_digests(world.checkpoint)
    world.apply(*make_facts(2, start=3))
    with world.ledger() as (ledger, model), ledger.read() as db:
        base, state = named_state(db, model, "base"), named_state(db, model, "#2")
        whole = rebuild(ledger, model, state.entry)
        figures = [tensor.as_dict() for tensor in diff_states(ledger, model, base, state).tensors]
        lose(ledger.objects.path(next(iter(state.digests.values()))), how)
        assert rebuild(ledger, model, state.entry) == whole
        assert [tensor.as_dict() for tensor in diff_states(ledger, model, base, state).tensors] == figures
    reverted = world.revert("HEAD")
    assert reverted.solved and any("earlier bytes are lost" in words for words in reverted.warnings)
    assert reverted.entry.details["from"] == "rows" and file_digests(world.checkpoint) == was
    with world.ledger() as (ledger, _):
        assert verify_ledger(ledger).problems == []


def test_so_it_is_where_bytes_of_the_head_are_lost_too(world: World) -> None:
    was = file_digests(world.checkpoint)
    world.apply(*make_facts(2, start=3))
    with world.ledger() as (ledger, model), ledger.read() as db:
        for number in (2, 3):
            for digest in store.state(db, model.id, number).values():
                ledger.objects.path(digest).unlink()
        assert rebuild(ledger, model, store.resolve_entry(db, "#2", model.id))
    with pytest.raises(VerificationFailed, match="before this entry are not stored"):  # and it could not be withdrawn
        world.revert("HEAD")
    with world.ledger() as (ledger, model):
        assert recover(ledger, model, "malmen recover", restore=True).error is None
    world.revert("HEAD")
    assert file_digests(world.checkpoint) == was


def test_the_threads_of_then_are_those_of_a_rebuild(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the apply, also where a revert has found its bytes stored since."""
    found, whole = list[int](), Workbench.solve

    def solve(bench: Workbench) -> Solved:
        found.append(torch.get_num_threads())
        return whole(bench)

    torch.set_num_threads(2)
    try:
        world.apply(*make_facts(1, start=3))
    finally:
        torch.set_num_threads(1)
    world.apply(*make_facts(1, start=4))
    world.revert("HEAD")
    world.apply(*make_facts(1, start=5))
    with world.ledger() as (ledger, model):
        assert collect(ledger, collectable(ledger, ["states"]), "malmen gc")
    assert world.revert("HEAD").solved  # the same facts once more, by other threads: of later entries alone
    world.apply(*make_facts(1, start=5))
    with world.ledger() as (ledger, model):
        assert collect(ledger, collectable(ledger, ["states"]), "malmen gc")
        monkeypatch.setattr(Workbench, "solve", solve)
        for number in (3, 5):
            with ledger.read() as db:
                entry = store.resolve_entry(db, f"#{number}", model.id)
            assert rebuild(ledger, model, entry)
    assert (found, torch.get_num_threads()) == ([2, 2], 1)


def test_without_the_rows_nothing_is_made_up(world: World) -> None:
    drop(world)
    with world.ledger() as (ledger, model):
        with ledger.read() as db:
            entry = store.resolve_entry(db, "#2", model.id)
            rows = [pack.object for pack in store.packs_of(db, entry.id)]
        ledger.objects.path(rows[0]).unlink()
        with pytest.raises(VerificationFailed):
            rebuild(ledger, model, entry)
