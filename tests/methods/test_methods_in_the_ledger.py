"""Methods without training through the ledger: made where there is none, in any order of facts, and taken back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from safetensors_folders import file_digests
from tiny_models import World, everything, fact_set, make_facts, make_world, run_malmen, write_facts
from torch import Tensor

from malmen_cli.checkpoint.digests import digest_bytes
from malmen_cli.errors import MalmenError, UnsafeFile, UsageError
from malmen_cli.facts import Fact
from malmen_cli.ledger import store, verify_ledger
from malmen_cli.methods.registry import METHODS, method_named
from malmen_cli.methods.settings import resolve_settings
from malmen_cli.operations.active import require_room_ahead
from malmen_cli.operations.apply import Applied, ApplyOptions, apply_facts
from malmen_cli.operations.editors import DESCRIPTION, load_editor, settings_of
from malmen_cli.operations.evaluated import Evaluated, EvaluationOptions
from malmen_cli.operations.evaluation import evaluate_file
from malmen_cli.operations.made import Made
from malmen_cli.operations.method_editors import MethodRequest, editor_by_method, find_by_method, make_and_keep
from malmen_cli.operations.plan import plan_facts
from malmen_cli.operations.rebase import Rebased, rebase
from malmen_cli.operations.rebuilding import rebuild
from malmen_cli.operations.reckoning import predict
from malmen_cli.operations.trial import attempt

QUICK: dict[str, dict[str, Any]] = {
    "ultraedit": {},
    "ft": {"epochs": 2, "batch_facts": 2},
    "locft-bf": {"epochs": 2, "batch_facts": 2, "learning_rate": 1e-2},
}
"""Settings that keep a tiny model's edit short."""

A, B = make_facts(3), make_facts(4, 100)


def request(method: str, **settings: Any) -> MethodRequest:
    found = method_named(method)
    return MethodRequest(found, resolve_settings(found, None, QUICK[method] | settings))


def apply(world: World, facts: list[Fact], method: str | None, **options: Any) -> Applied:
    with world.ledger() as (ledger, model):
        asked = None if method is None else request(method)
        given = ApplyOptions(method=asked, sample=0, check_old=0, **options)
        return apply_facts(ledger, model, fact_set(facts), given, "malmen apply")


def make(world: World, method: str) -> str:
    """An editor of its own, calibrated on other facts, so that it is the same in every world."""
    with world.ledger() as (ledger, model):
        return make_and_keep(ledger, model, request(method), make_facts(40, 3000), "malmen train")[0].id


def tensors(world: World) -> Mapping[str, Tensor]:
    return load_file(world.checkpoint / "model.safetensors")


def sound(world: World) -> bool:
    with world.ledger() as (ledger, _):
        return verify_ledger(ledger).problems == []


@pytest.fixture(params=["float32", "bfloat16"])
def bare(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """A world without an editor."""
    return make_world(tmp_path / "first", dtype=request.param, training=None)


def twin(world: World) -> World:
    dtype = str(next(iter(tensors(world).values())).dtype).removeprefix("torch.")
    return make_world(world.checkpoint.parents[1] / "second", dtype=dtype, training=None)


@pytest.mark.parametrize("method", QUICK)
class TestInTheLedger:
    def test_without_an_editor_one_is_made_and_everything_can_be_taken_back(self, bare: World, method: str) -> None:
        base = file_digests(bare.checkpoint)
        done = apply(bare, A, method)
        assert done.entry is not None and done.proposal.made is not None
        with bare.ledger() as (ledger, model), ledger.read() as db:
            [editor] = store.editors(db, model.id)
            assert editor.id == done.entry.editor_id
            assert editor.per_fact is METHODS[method].per_fact
            assert store.rows_of(db, editor.id, [f.edit_digest for f in A]).keys() or not editor.per_fact
        edited = file_digests(bare.checkpoint)
        assert edited != base and sound(bare)
        again = apply(bare, B, method)
        assert again.proposal.made is None and again.entry is not None and again.entry.editor_id == editor.id
        bare.revert("HEAD")
        assert file_digests(bare.checkpoint) == edited
        bare.revert("#2")
        assert file_digests(bare.checkpoint) == base and sound(bare)

    def test_the_order_of_applies_plays_no_part_and_an_older_one_can_be_taken_out(
        self, bare: World, method: str
    ) -> None:
        other = twin(bare)
        assert make(bare, method) == make(other, method)
        apply(bare, A, method)
        apply(bare, B, None)  # by the editor in force
        apply(other, B, method)
        only_b = tensors(other)
        apply(other, A, None)
        for name, tensor in tensors(bare).items():
            assert torch.equal(tensor, tensors(other)[name]), name
        done = bare.revert("#2")
        assert done.solved and done.anew is not METHODS[method].per_fact
        for name, tensor in tensors(bare).items():
            assert torch.equal(tensor, only_b[name]), name
        bare.revert("HEAD", *[])
        for name, tensor in tensors(bare).items():
            assert torch.equal(tensor, tensors(other)[name]), name
        assert sound(bare) and sound(other)

    def test_dry_runs_and_evaluations_write_nothing_and_say_what_they_made(self, bare: World, method: str) -> None:
        before = everything(bare)
        done = apply(bare, A, method, dry_run=True)
        assert done.entry is None and done.proposal.made is not None
        scored = evaluate(bare, method)
        assert (scored.editor, scored.method) == (None, method) and "nowhere" in str(scored.made)
        assert everything(bare) == before
        # A dry run's editor is the one that the apply makes.
        assert apply(bare, A, method).proposal.editor.id == done.proposal.editor.id
        assert evaluate(bare, method).editor == done.proposal.editor.id

    def test_what_gc_has_dropped_is_made_again(self, bare: World, method: str) -> None:
        apply(bare, A, method)
        with bare.ledger() as (ledger, model):
            with ledger.read() as db:
                entry = store.head(db, model.id)
                state = store.state(db, model.id)
            kept = {name: ledger.objects.get(digest) for name, digest in state.items()}
        apply(bare, B, method)
        code, _, said = run_malmen(bare, "gc", "--states", "--yes")
        assert code == 0, said
        with bare.ledger() as (ledger, model):
            with ledger.read() as db:
                assert store.dropped_objects(db, state.values())
            assert rebuild(ledger, model, entry) == kept


def evaluate(world: World, method: str) -> Evaluated:
    with world.ledger() as (ledger, model):
        options = EvaluationOptions(method=request(method), generate=False, overlap="keep")
        return evaluate_file(ledger, model, fact_set(A), options)


class TestMixing:
    def test_two_methods_are_never_mixed_and_rebase_moves_from_one_to_the_other(self, bare: World) -> None:
        apply(bare, A, "ultraedit")
        before = everything(bare)
        with pytest.raises(UsageError, match="never mixed") as refused:
            apply(bare, B, "ft")
        assert "malmen rebase --method ft" in str(refused.value.remedy)
        assert everything(bare) == before
        moved = move(bare, "ft")
        assert moved.entry is not None and moved.restored == []
        other = twin(bare)
        apply(other, A, "ft")
        for name, tensor in tensors(bare).items():
            assert torch.equal(tensor, tensors(other)[name]), name
        assert move(bare, "ft").entry is None
        assert move(bare, "ultraedit").entry is not None and sound(bare)

    def test_other_settings_are_another_editor(self, bare: World) -> None:
        apply(bare, A, "ft")
        with bare.ledger() as (ledger, model):
            asked = request("ft", epochs=3)
            with pytest.raises(UsageError, match="the same method with other settings") as refused:
                apply_facts(ledger, model, fact_set(B), ApplyOptions(method=asked), "malmen apply")
            # What is advised leads to what was asked for.
            assert str(refused.value.remedy).endswith("malmen rebase --method ft --method-settings FILE")
            moved = rebase(ledger, model, asked, "malmen rebase", sample=0)
            assert moved.entry is not None and moved.editor.id != moved.former

    def test_other_layers_while_facts_are_active(self, bare: World) -> None:
        """They are matched with the files by value, and what is edited now has not the base's."""
        asked, untouched = request("ft", layers="transformer.h.*.mlp.c_proj"), twin(bare)
        files = file_digests(bare.checkpoint)
        apply(bare, A, "ultraedit")
        options = EvaluationOptions(method=asked, generate=False)
        with bare.ledger() as (ledger, model), untouched.ledger() as (other_ledger, other):
            found = evaluate_file(ledger, model, fact_set(B), options)
            assert found.report == evaluate_file(other_ledger, other, fact_set(B), options).report
            moved = rebase(ledger, model, asked, "malmen rebase", sample=0)
            apply_facts(other_ledger, other, fact_set(A), ApplyOptions(method=asked, sample=0), "malmen apply")
        assert moved.entry is not None
        for name, tensor in tensors(bare).items():
            assert torch.equal(tensor, tensors(untouched)[name]), name
        bare.revert("#2")
        assert sound(bare) and {k: v for k, v in file_digests(bare.checkpoint).items() if k in files} == files

    def test_another_running_text_is_another_editor(self, bare: World) -> None:
        first, second = (f"{words} " * 40 for words in ("The capital of France is Paris.", "Rivers run to the sea."))
        memit = method_named("memit")
        with bare.ledger() as (ledger, model):
            made, _ = make_and_keep(ledger, model, MethodRequest(memit, text=first), (), "malmen train")
            for text, found in ((first, made), (None, made), (second, None)):
                assert find_by_method(ledger, model, MethodRequest(memit, text=text)) == found

    def test_a_text_that_begins_alike_can_be_moved_to(self, bare: World) -> None:
        """What is read of either gives the same tensors, and what a refusal advises must lead on all the same."""
        quick = {"covariance_tokens": 64, "target_steps": 2, "prefixes": ("The",), "prefix_tokens": 3}
        memit = method_named("memit")
        settings = resolve_settings(memit, None, quick)
        first, second = (
            MethodRequest(memit, settings, f"{'The capital of France is Paris. ' * 40}{end}") for end in ("", "Rivers.")
        )
        with bare.ledger() as (ledger, model):

            def apply_by(request: MethodRequest, facts: list[Fact]) -> Applied:
                options = ApplyOptions(method=request, sample=0, check_old=0)
                return apply_facts(ledger, model, fact_set(facts), options, "malmen apply")

            apply_by(first, A)
            with pytest.raises(UsageError, match="other settings or text") as refused:
                apply_by(second, B)
            assert str(refused.value.remedy).endswith("malmen rebase --method memit --method-settings FILE --text FILE")
            moved = rebase(ledger, model, second, "malmen rebase", sample=0)
            assert moved.entry is not None and moved.editor.id != moved.former
            assert apply_by(second, B).proposal.editor.id == moved.editor.id
        bare.revert("HEAD")
        bare.revert("HEAD")
        assert sound(bare)

    def test_an_editor_without_training_is_nobodys_default(self, bare: World) -> None:
        make(bare, "ultraedit")
        with pytest.raises(UsageError, match=r"no trained editor, but of other methods ultraedit \(") as refused:
            apply(bare, A, None)
        assert "malmen train FILE" in str(refused.value.remedy) and "--method" in str(refused.value.remedy)

    def test_a_method_that_is_trained_is_not_made(self, bare: World) -> None:
        with bare.ledger() as (ledger, model):
            asked = MethodRequest(METHODS["malmen"])
            with pytest.raises(UsageError, match="no editor of the method malmen yet"):
                apply_facts(ledger, model, fact_set(A), ApplyOptions(method=asked), "malmen apply")


class TestDisk:
    def test_an_editor_that_an_apply_makes_is_in_its_plan(self, bare: World) -> None:
        def stored() -> int:
            folders = (bare.workspace.objects, bare.workspace.editors)
            return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())

        with bare.ledger() as (ledger, model):
            chosen = partial(editor_by_method, model=model, request=request("ultraedit"), facts=A)
            trial = plan_facts(ledger, model, fact_set(A), chosen, attempt(ApplyOptions())).trial
            quick = plan_facts(ledger, model, fact_set(A), chosen, None, predict(ApplyOptions())).prediction
        before = stored()
        made = apply(bare, A, "ultraedit").proposal.made
        assert trial is not None and quick is not None and made is not None
        size = sum(map(len, made.files.values()))
        assert trial.prediction.disk == stored() - before > size
        assert quick.disk == pytest.approx(trial.prediction.disk, rel=0.3) and quick.disk > size

    def test_one_that_does_not_fit_is_refused_ahead(self, bare: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """A covariance of keys may be a gigabyte."""
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 1 << 40, 20 << 20))
        usage = shutil._ntuple_diskusage  # type: ignore[attr-defined]
        made = Made({"editor.safetensors": bytes(30 << 20)}, None, "", [], 0.0)
        with bare.ledger() as (ledger, model):
            record = editor_by_method(ledger, model, request("ft"), A).record
            require_room_ahead(ledger, model, record)
            with pytest.raises(MalmenError, match="too little space on the disk: this needs 3"):
                require_room_ahead(ledger, model, record, made=made)


def move(world: World, method: str) -> Rebased:
    with world.ledger() as (ledger, model):
        return rebase(ledger, model, request(method), "malmen rebase", sample=0)


def test_a_description_that_belies_its_method_is_refused(tmp_path: Path) -> None:
    world = make_world(tmp_path, training=None)
    made = make(world, "ultraedit")
    with world.ledger() as (ledger, model):
        with ledger.read() as db:
            record = store.editor(db, made)
        folder = ledger.workspace.editors / made
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        said = json.loads(files[DESCRIPTION])
        for wrong in (said | {"per_fact": False}, said | {"config": said["config"] | {"method": "ft"}}):
            with pytest.raises(UnsafeFile):
                load_editor(files | {DESCRIPTION: json.dumps(wrong).encode()}, model, record)
        with pytest.raises(UsageError, match="method 'none'"):
            unknown = said | {"config": said["config"] | {"method": "none"}}
            load_editor(files | {DESCRIPTION: json.dumps(unknown).encode()}, model, record)


class TestOnTheCommandLine:
    def test_names_and_options_are_checked_before_anything_is_loaded(self, tmp_path: Path) -> None:
        world = make_world(tmp_path, training=None)
        file = write_facts(tmp_path / "facts.jsonl", A)
        text = tmp_path / "text.txt"
        text.write_text("Some running text.")
        for words, what in [
            (("--method", "bogus"), ", ".join(METHODS)),
            (("--method", "ultraedit", "--editor", "ab"), "Give one of them"),
            (("--method", "ultraedit", "--text", str(text)), "no use of running text"),
            (("--method-settings", str(text)), "belong to a method"),
        ]:
            code, _, said = run_malmen(world, "apply", file, *words)
            assert code == 2 and what in said, said
        code, _, said = run_malmen(world, "train", file, "--method", "ultraedit", "--steps", "5", "--seed", "1")
        assert code == 2 and "--steps has no part in ultraedit, which is not trained" in said, said

    def test_options_without_a_part_in_making_an_editor_are_refused(self, tmp_path: Path) -> None:
        """Of another seed the same editor would be made, under another id; and of these facts nothing."""
        world = make_world(tmp_path, training=None)
        file = write_facts(tmp_path / "facts.jsonl", A)
        for words, idle in [
            ((file, "--method", "ultraedit", "--seed", "1"), "--seed has no part in making an editor of ultraedit"),
            ((file, "--method", "ft"), "FILE has no part in making an editor of ft"),
            (("--split", "x", "--method", "locft-bf"), "--split has no part in making an editor of locft-bf"),
            ((file, "--method", "memit", "--seed", "1"), "FILE, --seed have no part in making an editor of memit"),
        ]:
            code, _, said = run_malmen(world, "train", *words)
            assert code == 2 and idle in said, said
        code, out, said = run_malmen(world, "train", "--method", "ft", "--seed", "1", "--json")
        assert code == 0 and json.loads(out)["config"]["seed"] == 1, said
        with world.ledger() as (_, model):
            for method, taken in [
                ("malmen", "FILE --model tiny"),
                ("ultraedit", "FILE --model tiny --method ultraedit"),
                ("ft", "--model tiny --method ft"),
                ("memit", "--model tiny --method memit --text FILE"),
            ]:
                assert METHODS[method].train_command(model.name) == f"malmen train {taken}"

    def test_a_workspace_without_an_editor_applies_shows_and_takes_back(self, tmp_path: Path) -> None:
        world = make_world(tmp_path, training=None)
        file = write_facts(tmp_path / "facts.jsonl", A)
        base = file_digests(world.checkpoint)
        settings = tmp_path / "settings.json"
        settings.write_text(json.dumps({"change": 0.5}))
        code, out, said = run_malmen(
            world, "apply", file, "--method", "ultraedit", "--method-settings", settings, "--json"
        )
        assert code in (0, 3), said
        shown = json.loads(out)
        code, out, _ = run_malmen(world, "models", "show", "--json")
        [editor] = json.loads(out)["editors"]
        assert (editor["id"], editor["method"], editor["config"]["change"]) == (shown["editor"], "ultraedit", 0.5)
        assert run_malmen(world, "revert", "HEAD")[0] == 0
        assert file_digests(world.checkpoint) == base
        plan = run_malmen(world, "plan", file, "--method", "ft", "-o", tmp_path / "plan.json")
        assert plan[0] == 2 and "a saved plan names an editor that is kept, and tiny has none of ft" in plan[2], plan
        # Its normaliser saw the facts of the first apply, and is frozen: what comes later is told so.
        few = f"the normaliser is calibrated on {len(A)} facts alone"
        more = write_facts(tmp_path / "more.jsonl", make_facts(len(A) + 3))
        again = run_malmen(world, "apply", more, "--method", "ultraedit", "--dry-run")
        assert again[0] in (0, 3) and few in again[2], again
        assert "then malmen rebase --method ultraedit for facts that are active" in again[2]
        assert few not in run_malmen(world, "apply", file, "--method", "ultraedit", "--dry-run")[2]
        assert digest_bytes((world.checkpoint / "config.json").read_bytes())


def test_gc_keeps_the_newest_editor_of_each_method(tmp_path: Path) -> None:
    world = make_world(tmp_path)  # with a trained one
    made = make(world, "ultraedit")
    code, out, _ = run_malmen(world, "gc", "--editors", "--dry-run", "--json")
    assert code == 0 and made not in out
    with world.ledger() as (ledger, model), ledger.read() as db:
        assert [editor.id in out for editor in store.editors(db, model.id)] == [False, False]
    code, out, said = run_malmen(world, "apply", write_facts(tmp_path / "facts.jsonl", A), "--dry-run", "--json")
    assert code in (0, 3), said
    assert json.loads(out)["editor"] != made  # the default is the trained one, though it is older


@pytest.mark.parametrize(
    ("method", "settings", "problem"),
    [
        ("ultraedit", {"layers": []}, "layers should be one or more globs over module paths, not []"),
        ("ultraedit", {"layers": ""}, "layers should be one or more globs over module paths, not ''"),
        ("ft", {"layers": [1]}, "layers should be one or more globs over module paths, not [1]"),
        ("ultraedit", {"ridge": 1e13}, "ridge should be less than or equal to 1000000000000, not 10000000000000"),
        ("ft", {"learning_rate": 1e4}, "learning_rate should be less than or equal to 1000, not 10000"),
        ("locft-bf", {"epochs": 2.5}, "epochs should be a valid integer, not 2.5"),
        ("memit", {"clamp": 0}, "clamp should be greater than 0, not 0"),
        ("memit", {"prefixes": ["The", " "]}, "prefixes should hold no blank text, not ['The', ' ']"),
    ],
)
def test_settings_without_sense_are_refused_in_words(method: str, settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_settings(method_named(method), None, settings)
    assert caught.value.message == f"settings of {method}: {problem}"


def test_no_layers_at_all_are_read_as_they_once_were_meant(bare: World) -> None:
    apply(bare, A, "ultraedit")
    with bare.ledger() as (ledger, model):
        with ledger.read() as db:
            record = store.editors(db, model.id)[0]
        stored = {**record.config, "config": {**record.config["config"], "layers": []}}
        assert settings_of(replace(record, config=stored)).layers is None
        folder = ledger.workspace.editors / record.id
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        described = json.loads(files[DESCRIPTION])
        described["config"]["layers"] = []
        files[DESCRIPTION] = json.dumps(described).encode()
        assert load_editor(files, model, record)[1] == load_editor(folder, model, record)[1]
