"""Moving all active facts to another editor gives what applying them under it from scratch would have given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from safetensors_folders import file_digests
from tiny_models import TINY_TRAINING, World, fact_set, make_facts, make_world, run_malmen

from malmen_cli.errors import UsageError
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.ledger import store, verify_ledger
from malmen_cli.operations.rebase import Rebased, rebase
from malmen_cli.operations.train import train_editor


def add_editor(world: World, *, seed: int, last_layer_only: bool = False) -> str:
    with world.ledger() as (ledger, model):
        layers = [model.architecture["layers"][-1]["name"]] if last_layer_only else None
        config = TINY_TRAINING.model_copy(update={"seed": seed})
        return train_editor(ledger, model, fact_set(make_facts(24, start=4000)), config, layers=layers).record.id


def move(world: World, editor: str) -> Rebased:
    with world.ledger() as (ledger, model):
        return rebase(ledger, model, editor, "malmen rebase", sample=2)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def first_editor(world: World) -> str:
    with world.ledger() as (ledger, model), ledger.read() as db:
        return store.editors(db, model.id)[-1].id


@pytest.mark.parametrize("last_layer_only", [False, True])
def test_it_equals_applying_all_under_the_other_editor(world: World, last_layer_only: bool) -> None:
    former = first_editor(world)
    other = add_editor(world, seed=1, last_layer_only=last_layer_only)
    base = file_digests(world.checkpoint)
    world.apply(*make_facts(3), editor=other)
    alone = file_digests(world.checkpoint)
    world.revert("HEAD")
    assert file_digests(world.checkpoint) == base

    world.apply(*make_facts(3), editor=former)
    under_former = file_digests(world.checkpoint)
    done = move(world, other)
    assert done.entry is not None and (done.former, done.active) == (former, 3)
    # Layers that the other editor leaves out are the base's again; the sidecar is the same too.
    assert file_digests(world.checkpoint) == alone
    assert bool(done.restored) == last_layer_only
    assert done.check is not None and len(done.check.answers) == 2
    # Also where blocks below the first layer that it edits are other ones than when it was asked before.
    model = LanguageModel(world.checkpoint)
    for wrong in done.check.wrong:
        [said] = model.predictions([model.tokenizing(wrong.prompt, wrong.target)])
        assert wrong.answer == model.tokenizing.text_of(said)

    back = move(world, former)
    assert back.entry is not None
    assert file_digests(world.checkpoint) == under_former
    with world.ledger() as (ledger, _):
        assert verify_ledger(ledger).problems == []


def test_what_was_taken_out_before_a_rebase_can_come_back_after_it(world: World) -> None:
    other = add_editor(world, seed=1)
    world.apply(*make_facts(3), editor=first_editor(world))
    world.revert("HEAD", 2)  # fact 1 goes
    revert = "#3"
    move(world, other)
    # The fact comes back under an editor that has no rows of it yet: the model is asked for them.
    done = world.revert(revert)
    assert len(done.revived) == 1 and done.solved and done.captured == 1
    with world.ledger() as (ledger, _):
        assert verify_ledger(ledger).problems == []
        with ledger.read() as db:
            edits = {fact.edit_digest for fact in make_facts(3)}
            assert all(rows.keys() >= edits for rows in store.rows_of(db, other, edits).values())
    fresh = make_world(world.checkpoint.parent / "fresh")
    assert add_editor(fresh, seed=1) == other
    base = load_file(fresh.checkpoint / "model.safetensors")
    fresh.apply(*make_facts(3), editor=other)
    wanted, found = (load_file(w.checkpoint / "model.safetensors") for w in (fresh, world))
    for name in wanted:
        # Its rows were captured in other batches there: equal to float32's rounding, not to the bit.
        assert float((found[name] - wanted[name]).norm()) <= 1e-5 * float((wanted[name] - base[name]).norm()), name


def test_a_revert_made_after_a_rebase_is_reverted_under_the_same_editor(world: World) -> None:
    other = add_editor(world, seed=1)
    world.apply(*make_facts(2), editor=first_editor(world))
    move(world, other)
    moved = file_digests(world.checkpoint)
    world.revert("#2")
    world.revert("HEAD")
    assert file_digests(world.checkpoint) == moved
    with world.ledger() as (ledger, model), ledger.read() as db:
        assert store.head(db, model.id).editor_id == other


def test_nothing_to_do_writes_nothing(world: World) -> None:
    former = first_editor(world)
    other = add_editor(world, seed=1)
    assert move(world, other).entry is None  # no fact is active
    world.apply(*make_facts(2), editor=former)
    assert move(world, former).entry is None  # in force already


def test_a_rebase_is_undone_by_a_rebase(world: World) -> None:
    other = add_editor(world, seed=1)
    world.apply(*make_facts(2), editor=first_editor(world))
    move(world, other)
    with pytest.raises(UsageError, match="rebase entry cannot be reverted") as refusal:
        world.revert("HEAD")
    assert "malmen rebase --editor" in str(refusal.value.remedy)


def test_mixing_editors_is_refused_and_names_the_rebase(world: World) -> None:
    other = add_editor(world, seed=1)
    world.apply(*make_facts(2), editor=first_editor(world))
    with pytest.raises(UsageError, match="never mixed") as refusal:
        world.apply(*make_facts(1, start=9), editor=other)
    assert f"malmen rebase --editor {other}" in str(refusal.value.remedy)


def test_the_command(world: World) -> None:
    former = first_editor(world)
    other = add_editor(world, seed=1)
    world.apply(*make_facts(2), editor=former)
    status, out, err = run_malmen(world, "rebase", "--editor", other[:6], "--json")
    assert status in (0, 3), err
    said = json.loads(out)
    assert (said["editor"], said["former_editor"], said["active"]) == (other, former, 2)
    assert said["entry"]["kind"] == "rebase"
    status, out, err = run_malmen(world, "log")
    assert status == 0 and "rebase" in out and other[:10] in out
    status, out, err = run_malmen(world, "rebase", "--editor", former)
    assert status in (0, 3) and f"malmen rebase --model tiny --editor {other}" in out
    status, out, err = run_malmen(world, "rebase", "--editor", "nobody")
    assert status == 2 and not out
