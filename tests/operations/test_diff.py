"""What `malmen diff` finds between two states, on real tiny checkpoints, against an independent look at the files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors_folders import file_digests
from test_imports_of_verbs import HEAVY, loaded_by
from tiny_models import World, environment, load, make_fact, make_facts, make_world

from malmen_cli.errors import UnknownName, UsageError
from malmen_cli.facts import Unrelated
from malmen_cli.ledger import Ledger, ModelRecord, collect, collectable, store
from malmen_cli.ledger.records import Entry
from malmen_cli.operations import rebuilding
from malmen_cli.operations.diff import StateDiff, diff_states
from malmen_cli.operations.predictions import Asked, compare_predictions
from malmen_cli.operations.states import named_state, owner

EDITED = ("transformer.h.1.mlp.c_proj.weight", "transformer.h.2.mlp.c_proj.weight")
UNEDITED = "transformer.h.0.ln_1.weight"


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    """#2 applies facts 0 to 2, #3 moves fact 1 to Oslo and adds fact 5, #4 takes fact 0 out."""
    world = make_world(tmp_path_factory.mktemp("world"), dtype=request.param)
    world.apply(*make_facts(3))
    world.apply(make_fact(1, "Oslo"), make_fact(5))
    world.revert("#2", 1)
    return world


@pytest.fixture
def own_world(tmp_path: Path) -> World:
    """A world that a test may damage: #2 applies facts 0 to 2."""
    world = make_world(tmp_path)
    world.apply(*make_facts(3))
    return world


def diff(world: World, a: str = "base", b: str = "checkpoint", *, top: int = 5) -> StateDiff:
    with world.ledger() as (ledger, model):
        with ledger.read() as db:
            states = named_state(db, model, a), named_state(db, model, b)
        return diff_states(ledger, model, *states, top=top)


def ask(world: World, found: StateDiff, **options: int) -> Asked:
    with world.ledger() as (ledger, _):
        return compare_predictions(ledger, found, **options)


def weights(world: World, tensor: str) -> torch.Tensor:
    """A tensor as the checkpoint's file holds it, in float64."""
    with safe_open(world.checkpoint / "model.safetensors", "pt") as file:
        return file.get_tensor(tensor).double()


def flip(world: World, tensor: str) -> None:
    """Change one tensor of the checkpoint behind the ledger's back, in the lowest bit of its first number."""
    path = world.checkpoint / "model.safetensors"
    with world.ledger() as (_, model):
        place = model.manifest.slot(tensor).start
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


class TestFacts:
    def test_between_two_entries(self, world: World) -> None:
        found = diff(world, "#2", "#3")
        assert [fact.prompt for fact in found.added] == [make_fact(5).prompt]
        assert found.removed == []
        assert found.superseded == [(make_fact(1), make_fact(1, "Oslo"))]
        assert len(found.common) == 2

    def test_backwards_they_change_places(self, world: World) -> None:
        there, back = diff(world, "#2", "#3"), diff(world, "#3", "#2")
        assert (back.added, back.removed) == (there.removed, there.added)
        assert back.superseded == [(new, old) for old, new in there.superseded]

    def test_a_revert_removes(self, world: World) -> None:
        found = diff(world, "#3", "HEAD")
        assert (found.added, found.removed, found.superseded) == ([], [make_fact(0)], [])

    def test_from_the_base_all_active_ones_are_added(self, world: World) -> None:
        found = diff(world)
        assert found.added == [make_fact(2), make_fact(1, "Oslo"), make_fact(5)]
        assert found.common == []


class TestTensors:
    @pytest.mark.parametrize("tensor", EDITED)
    def test_figures_are_those_of_the_files(self, world: World, tmp_path: Path, tensor: str) -> None:
        """Against the base made anew (its seed gives the same bytes) and numpy's SVD in float64."""
        [folder] = [world.checkpoint]
        with world.ledger() as (ledger, model):
            base = ledger.objects.get(model.manifest.tensors[tensor].digest)
        before = _as_float64(base, folder, tensor)
        after = weights(world, tensor).numpy()
        [found] = [t for t in diff(world, top=100).tensors if t.tensor == tensor]
        values = np.linalg.svd(after - before, compute_uv=False)
        assert found.note is None
        assert found.singular_values == pytest.approx(values.tolist(), rel=1e-6, abs=1e-7 * values[0])
        assert found.figures["norm"] == pytest.approx(np.linalg.norm(after - before))
        assert found.figures["relative_norm"] == pytest.approx(np.linalg.norm(after - before) / np.linalg.norm(before))
        assert found.figures["largest_change"] == np.abs(after - before).max()
        assert found.figures["share_moved"] == (after != before).mean()
        assert len(diff(world, top=2).tensors[0].singular_values) == 2

    def test_only_the_edited_ones_differ(self, world: World) -> None:
        for pair in (("base", "HEAD"), ("#2", "#3"), ("base", "checkpoint")):
            assert [tensor.tensor for tensor in diff(world, *pair).tensors] == list(EDITED)

    def test_relative_norms_are_over_the_base(self, world: World) -> None:
        """Of #2 -> #3 too: the same base norm, whatever the states are."""
        one, other = diff(world, "#2", "#3").tensors[0].figures, diff(world, "base", "HEAD").tensors[0].figures
        assert one["norm"] / one["relative_norm"] == pytest.approx(other["norm"] / other["relative_norm"])


def _as_float64(data: bytes, folder: Path, tensor: str) -> np.ndarray:
    with safe_open(folder / "model.safetensors", "pt") as file:
        like = file.get_tensor(tensor)
    return torch.frombuffer(bytearray(data), dtype=like.dtype).reshape(like.shape).double().numpy()


class TestNothingDiffers:
    @pytest.mark.parametrize("pair", [("HEAD", "checkpoint"), ("base", "#1"), ("#2", "#2")])
    def test_and_then_torch_is_not_loaded(self, world: World, pair: tuple[str, str]) -> None:
        assert not diff(world, *pair).differs
        assert not loaded_by(world, "diff", *pair) & HEAVY

    def test_after_reverting_everything(self, own_world: World) -> None:
        assert diff(own_world).differs
        own_world.revert("HEAD")
        assert not diff(own_world).differs
        assert not diff(own_world, "base", "HEAD").differs


class TestBehindTheLedgersBack:
    def test_an_edited_tensor_is_named_with_figures(self, own_world: World) -> None:
        flip(own_world, EDITED[0])
        found = diff(own_world, "HEAD")
        assert (found.strange, [tensor.tensor for tensor in found.tensors]) == ([EDITED[0]], [EDITED[0]])
        size = weights(own_world, EDITED[0]).numel()
        assert found.tensors[0].figures["share_moved"] == pytest.approx(1 / size)
        assert not found.added and not found.removed

    def test_another_tensor_is_named_in_words(self, own_world: World) -> None:
        flip(own_world, UNEDITED)
        found = diff(own_world)
        assert found.strange == [UNEDITED]
        notes = {tensor.tensor: tensor.note for tensor in found.tensors}
        assert notes == {UNEDITED: notes[UNEDITED], **dict.fromkeys(EDITED)}
        assert "never stored" in (notes[UNEDITED] or "")
        assert not diff(own_world, "base", "HEAD").strange  # the folder is no part of that question

    def test_a_changed_configuration_differs_too(self, own_world: World) -> None:
        path = own_world.checkpoint / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"extra": 1}))
        found = diff(own_world, "HEAD")
        assert found.differs and not found.tensors
        assert any("config.json" in remark for remark in found.files)

    @pytest.mark.parametrize("damage", ["cut", "lost", "header"])
    def test_a_weight_file_that_is_not_one_any_more(self, own_world: World, damage: str) -> None:
        path = own_world.checkpoint / "model.safetensors"
        data = path.read_bytes()
        path.unlink()
        if damage == "cut":
            path.write_bytes(data[:-8])
        elif damage == "header":
            path.write_bytes(data.replace(b'"F32"', b'"I32"', 1))
        found = diff(own_world)
        assert found.differs and not found.tensors
        assert any("model.safetensors" in remark for remark in found.files)


def test_a_lost_object_costs_the_figures_of_its_tensor_alone_and_with_its_rows_there_none(own_world: World) -> None:
    own_world.apply(make_fact(7))
    with own_world.ledger() as (ledger, _):
        with ledger.read() as db:
            entry = store.resolve_entry(db, "#2").id
            [digest] = [d.after for d in store.deltas_of(db, entry) if d.tensor == EDITED[0]]
            rows = [pack.object for pack in store.packs_of(db, entry)]
        ledger.objects.path(digest).unlink()
        assert all(tensor.figures for tensor in diff(own_world, "#2", "HEAD").tensors)  # solved again
        for pack in rows:
            ledger.objects.path(pack).unlink()
    found = diff(own_world, "#2", "HEAD")
    assert [fact.prompt for fact in found.added] and [t.tensor for t in found.tensors] == list(EDITED)
    lost = found.tensors[0]
    assert not lost.figures and "cannot be read" in (lost.note or "")
    assert all(tensor.figures for tensor in found.tensors[1:])
    assert diff(own_world, "base", "HEAD").tensors[0].figures  # which needs it not


def test_a_base_that_somebody_put_back_has_no_facts_in_it(own_world: World) -> None:
    own_world.revert("HEAD")  # everything is out: these are the base's files
    base = {path.name: path.read_bytes() for path in own_world.checkpoint.glob("*.safetensors")}
    own_world.apply(make_fact(7))
    for name, data in base.items():
        (own_world.checkpoint / name).write_bytes(data)
    found = diff(own_world)
    assert found.strange and not found.differs
    assert [fact.prompt for fact in diff(own_world, "HEAD").removed] == [make_fact(7).prompt]


def test_an_object_that_is_gone_is_read_from_the_checkpoint_that_still_holds_it(own_world: World) -> None:
    with own_world.ledger() as (ledger, model), ledger.read() as db:
        for digest in store.state(db, model.id).values():
            ledger.objects.path(digest).unlink()
    assert all(tensor.figures for tensor in diff(own_world).tensors)


def test_an_interrupted_entry_is_mentioned_and_has_no_state(own_world: World, tmp_path: Path) -> None:
    with own_world.ledger() as (ledger, model):
        with ledger.write() as db:
            head = store.head(db, model.id)
            db.execute("UPDATE entries SET status = 'pending' WHERE id = ?", (head.id,))
        with ledger.read() as db, pytest.raises(UsageError, match="interrupted"):
            named_state(db, model, "#2")
    assert diff(own_world).pending.id == head.id


def test_whose_states_are_meant(own_world: World) -> None:
    with own_world.ledger() as (ledger, model), ledger.read() as db:
        head = store.head(db, model.id).id
        assert owner(db, None, "HEAD", head).id == model.id
        assert owner(db, model.name, "base").id == model.id
        with pytest.raises(UnknownName):
            owner(db, None, "abcdef", "HEAD")
        with pytest.raises(UnknownName):
            named_state(db, model, "nonsense")


class TestPredictions:
    def test_are_what_each_state_answers(self, own_world: World) -> None:
        """Against the folder itself, loaded before and after."""
        own_world.revert("HEAD")
        base = load(own_world.checkpoint, float64=False)
        before = file_digests(own_world.workspace.objects)
        own_world.apply(*make_facts(3))
        edited = load(own_world.checkpoint, float64=False)
        found = diff(own_world)
        asked = ask(own_world, found).predictions
        facts = make_facts(3)
        prompts = [fact.prompt for fact in facts] + [fact.rephrases[0] for fact in facts]
        assert [p.prompt for p in asked] == prompts + [fact.unrelated[0].prompt for fact in facts]
        assert [p.kind for p in asked] == ["edit"] * 3 + ["rephrase"] * 3 + ["unrelated"] * 3
        for prediction in asked:
            length = base.tokenizing(prediction.prompt, prediction.target).supervised
            assert prediction.before == base.generate([prediction.prompt], length)[0].text
            assert prediction.after == edited.generate([prediction.prompt], length)[0].text
        assert any(prediction.changed for prediction in asked)
        assert before.items() <= file_digests(own_world.workspace.objects).items()

    def test_ask_facts_common_to_both_states_up_to_a_number(self, world: World) -> None:
        found = diff(world, "#2", "#3")
        edits = [p.prompt for p in ask(world, found).predictions if p.kind == "edit"]
        assert sorted(edits) == sorted(make_fact(i).prompt for i in (0, 1, 2, 5))
        fewer = [p.prompt for p in ask(world, found, common=1).predictions if p.kind == "edit"]
        assert len(fewer) == 3 and set(fewer) < set(edits)

    def test_an_edit_prompt_has_its_own_target_also_where_another_fact_holds_it_for_unrelated(
        self, own_world: World
    ) -> None:
        neighbour = replace(make_fact(7), unrelated=(Unrelated(make_fact(8).prompt, "Cusco"),))
        own_world.apply(neighbour, make_fact(8))
        asked = ask(own_world, diff(own_world, "HEAD~1", "HEAD")).predictions
        found = {p.prompt: (p.kind, p.target) for p in asked}
        assert found[make_fact(8).prompt] == ("edit", make_fact(8).target)

    def test_of_equal_states_load_no_model(self, world: World) -> None:
        assert ask(world, diff(world, "HEAD", "checkpoint")).predictions == []
        assert not loaded_by(world, "diff", "HEAD") & HEAVY

    def test_say_which_tensors_were_asked_as_they_lie(self, own_world: World) -> None:
        flip(own_world, UNEDITED)
        assert ask(own_world, diff(own_world)).as_they_lie == [UNEDITED]
        assert ask(own_world, diff(own_world, "base", "HEAD")).as_they_lie == [UNEDITED]

    def test_of_states_that_gc_has_dropped_solve_them_once(
        self, own_world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        own_world.apply(make_fact(7))
        own_world.revert("HEAD")
        with own_world.ledger() as (ledger, _):
            collect(ledger, collectable(ledger, ["states"]), "malmen gc")
        solved, whole = list[int](), rebuilding.rebuild

        def rebuild(ledger: Ledger, model: ModelRecord, entry: Entry) -> dict[str, bytes]:
            solved.append(entry.number)
            return whole(ledger, model, entry)

        monkeypatch.setattr(rebuilding, "rebuild", rebuild)
        found = diff(own_world, "base", "HEAD~1")
        assert all(tensor.figures for tensor in found.tensors) and len(solved) == 1
        assert ask(own_world, found).predictions and len(solved) == 1


def test_nothing_is_written_and_no_lock_is_needed(own_world: World) -> None:
    hold = f"""
from pathlib import Path
from malmen_cli.checkpoint.lock import checkpoint_lock
with checkpoint_lock(Path({str(own_world.checkpoint)!r}), "malmen apply theirs.jsonl"):
    print("held", flush=True)
    input()
"""
    files = file_digests(own_world.checkpoint)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", hold], env=environment(), **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        assert diff(own_world).differs
        holder.communicate("\n")
    assert file_digests(own_world.checkpoint) == files
