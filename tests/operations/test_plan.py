"""A plan says what the apply would do, writes nothing, and is refused once the ledger has moved on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import World, everything, fact_set, load, make_fact, make_facts, make_world, run_malmen, write_facts

from malmen_cli.errors import BadFacts, StalePlan, UnsafeFile, WrongBase
from malmen_cli.facts import Fact, FactSet, printable
from malmen_cli.ledger import active_digest, store
from malmen_cli.operations.active import active_now, propose
from malmen_cli.operations.apply import ApplyOptions, apply_facts
from malmen_cli.operations.plan import Plan, plan_facts
from malmen_cli.operations.reckoning import COUNTED, predict
from malmen_cli.operations.rows import RowReader
from malmen_cli.operations.saved_plan import model_of, read_plan, save_plan
from malmen_cli.operations.trial import attempt
from malmen_cli.operations.workbench import Workbench


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = make_world(tmp_path)
    world.apply(*make_facts(3))
    return world


def plan(world: World, facts: FactSet, *, quick: bool = False) -> Plan:
    with world.ledger() as (ledger, model):
        if quick:
            return plan_facts(ledger, model, facts, None, None, predict(ApplyOptions()))
        return plan_facts(ledger, model, facts, None, attempt(ApplyOptions()))


def mixed() -> FactSet:
    """Two new facts, one that is active, one that supersedes, and one record that the file held twice."""
    facts = (make_fact(10), make_fact(11), make_fact(0), make_fact(1, "Ouagadougou"))
    return FactSet(facts, "facts.jsonl", duplicates=1)


@pytest.mark.parametrize("quick", [True, False])
def test_it_counts_what_the_apply_then_does_and_writes_nothing(world: World, quick: bool) -> None:
    before = everything(world)
    planned = plan(world, mixed(), quick=quick)
    assert everything(world) == before
    additions = planned.proposal.additions
    assert (len(additions.new), len(additions.already_active), len(additions.superseding)) == (2, 1, 1)
    applied = world.apply(*mixed())
    assert applied.entry is not None
    assert applied.proposal.additions == additions
    assert applied.entry.active_digest == planned.proposal.active_digest
    assert applied.active == len(planned.proposal.active) == 5


@pytest.mark.parametrize("quick", [True, False])
def test_a_fact_that_the_apply_would_refuse_is_refused(world: World, quick: bool) -> None:
    facts = FactSet((make_fact(10), make_fact(11, "Rome and " * 40 + "Lima")), "facts.jsonl")
    with pytest.raises(BadFacts, match="1 fact does not fit the model") as caught:
        plan(world, facts, quick=quick)
    assert make_fact(11).prompt in caught.value.problems[0]


def test_so_it_is_among_thousands_and_where_only_the_plan_is_wanted(world: World, tmp_path: Path) -> None:
    long = "Rome and " * 40 + "Lima"
    facts = [make_fact(10 + index, long if index in (1, 3) else f"Lima {index}") for index in range(2 * COUNTED + 1)]
    with pytest.raises(BadFacts, match="2 facts do not fit the model"):
        plan(world, FactSet(tuple(facts), "facts.jsonl"), quick=True)
    file = write_facts(tmp_path / "facts.jsonl", facts[:4])
    status, out, err = run_malmen(world, "plan", file, "--quick", "-q", "-o", tmp_path / "plan.json")
    assert (status, out) == (2, "") and "2 facts do not fit the model" in err
    assert not (tmp_path / "plan.json").exists()


def test_residuals_and_leverages_are_those_of_the_solve(world: World) -> None:
    facts = fact_set([make_fact(10), make_fact(4)])
    planned = plan(world, facts)
    assert planned.trial is not None
    with world.ledger() as (ledger, model):
        proposal = propose(ledger, model, facts, None)
        bench = Workbench(ledger, model, proposal.editor, proposal.active)
        bench.capture(facts)
        missed = dict.fromkeys(bench.edits, 0.0)
        wanted = dict.fromkeys(bench.edits, 0.0)
        leverage = dict.fromkeys(bench.edits, 0.0)
        read = RowReader(ledger.objects, bench.fresh)
        for index, layer in enumerate(bench.layers):
            parts = [[x.double() for x in read(row)] for row in bench.rows(layer.name)]
            keys, diffs = (torch.cat([part[i] for part in parts]) for i in (0, 1))
            # A as it is written, and its inverse.
            matrix = keys.T @ keys + bench.editor.ridge(index) * torch.eye(keys.shape[1], dtype=torch.float64)
            preserved = bench.editor.preserved[index]
            assert preserved is not None
            matrix += bench.editor.preserved_strength(index, len(keys)) * preserved.second_moment
            inverse = torch.linalg.inv(matrix)
            shift = inverse @ keys.T @ diffs
            for edit, (u, d) in zip(bench.edits, parts, strict=True):
                missed[edit] += float((u @ shift - d).square().sum())
                wanted[edit] += float(d.square().sum())
                leverage[edit] = max(leverage[edit], float((u @ inverse @ u.T).diagonal().max()))
            read.close_layer()
    for figure in planned.trial.figures:
        edit = figure.edit_digest
        assert figure.residual == pytest.approx((missed[edit] / wanted[edit]) ** 0.5, rel=1e-5)
        assert figure.leverage == pytest.approx(leverage[edit], rel=1e-5)
        assert 0 < figure.leverage < 1


def test_a_fact_that_the_model_says_already_is_known(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    model = load(world.checkpoint, float64=False)
    said = ((make_fact(i).prompt, model.generate([make_fact(i).prompt], 1)[0].text) for i in range(4096))
    # The first answer that is a target's one token, so that a fact can be made of it.
    known = next(
        Fact(prompt, answer)
        for prompt, answer in said
        if answer.isalnum()
        and (tokens := model.tokenizing.fits(prompt, answer))
        and model.predictions([tokens]) == [list(tokens.labels)]
    )
    planned = plan(world, fact_set([make_fact(5), known]))
    assert planned.trial is not None
    assert [figure.known for figure in planned.trial.figures] == [False, True]


def test_disk_is_predicted_to_the_byte(world: World) -> None:
    planned = plan(world, mixed())
    assert planned.trial is not None

    def stored() -> int:
        return sum(path.stat().st_size for path in world.workspace.objects.rglob("*") if path.is_file())

    before = stored()
    world.apply(*mixed())
    assert stored() - before == planned.trial.prediction.disk
    largest = max(path.stat().st_size for path in world.checkpoint.glob("*.safetensors"))
    assert planned.trial.prediction.temporary == largest


class TestSaved:
    def test_it_is_applied_as_it_was_planned(self, world: World, tmp_path: Path) -> None:
        path = tmp_path / "plan.json"
        save_plan(path, plan(world, mixed()).proposal)
        saved = read_plan(path)
        assert saved.facts == mixed()
        with world.ledger() as (ledger, model):
            assert model_of(ledger, saved).id == model.id
            options = ApplyOptions(editor=saved.editor, expected=(saved.active_digest, saved.head), sample=0)
            applied = apply_facts(ledger, model, saved.facts, options, "malmen apply --plan plan.json")
        assert applied.entry is not None and applied.entry.active_digest == saved.active_digest

    @pytest.mark.parametrize("name", ["facts\u00a0v2.jsonl", "two\nlines", "\u202eevil.jsonl"])
    def test_its_file_may_have_any_name(self, world: World, tmp_path: Path, name: str) -> None:
        path = tmp_path / "plan.json"
        save_plan(path, plan(world, replace(mixed(), source=name)).proposal)
        assert read_plan(path).facts.source == printable(name, None)

    @pytest.mark.parametrize("between", ["an apply", "a revert"])
    def test_it_is_stale_once_the_ledger_has_moved_on(self, world: World, tmp_path: Path, between: str) -> None:
        path = tmp_path / "plan.json"
        save_plan(path, plan(world, mixed()).proposal)
        if between == "an apply":
            world.apply(make_fact(30))
        else:
            world.revert("HEAD")
        before = everything(world)
        saved = read_plan(path)
        with world.ledger() as (ledger, model):
            with pytest.raises(StalePlan, match="stale"):
                model_of(ledger, saved)
            options = ApplyOptions(editor=saved.editor, expected=(saved.active_digest, saved.head))
            with pytest.raises(StalePlan, match="stale"):
                apply_facts(ledger, model, saved.facts, options, "")
        assert everything(world) == before
        status, out, err = run_malmen(world, "apply", "--plan", path)
        assert (status, out) == (13, "") and "malmen plan" in err
        assert everything(world) == before

    @pytest.mark.parametrize(
        "damage",
        [
            lambda said: said.update(malmen_plan=2),
            lambda said: said.update(head="sha256:zz"),
            lambda said: said.pop("editor"),
            lambda said: said.update(facts=[]),
            lambda said: said["facts"][0].update(target="Rome"),
            lambda said: said["facts"].append(said["facts"][0]),
            lambda said: said["facts"][0].update(colour="red"),
            lambda said: said.update(duplicates="1"),
        ],
    )
    def test_a_changed_plan_is_refused(
        self, world: World, tmp_path: Path, damage: Callable[[dict[str, object]], object]
    ) -> None:
        path = tmp_path / "plan.json"
        save_plan(path, plan(world, mixed(), quick=True).proposal)
        said = json.loads(path.read_text())
        damage(said)
        path.write_text(json.dumps(said))
        with pytest.raises(UnsafeFile, match="not a saved plan"):
            read_plan(path)

    @pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"malmen_plan": 1}'])
    def test_what_is_no_plan_is_refused(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "plan.json").write_bytes(data)
        with pytest.raises(UnsafeFile, match="not a saved plan"):
            read_plan(tmp_path / "plan.json")


def test_a_changed_checkpoint_is_refused(world: World) -> None:
    path = next(world.checkpoint.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WrongBase):
        plan(world, mixed(), quick=True)


def test_a_plan_replaces_plans_only(world: World, tmp_path: Path) -> None:
    file = write_facts(tmp_path / "facts.jsonl", make_facts(1, start=10))
    text = file.read_text()
    status, out, err = run_malmen(world, "plan", file, "--quick", "-o", file)
    assert status == 2 and not out and "is not a plan" in err and file.read_text() == text
    for _ in range(2):
        status, _, err = run_malmen(world, "plan", file, "--quick", "-q", "-o", tmp_path / "plan.json")
        assert status == 0, err


@pytest.mark.parametrize("place", ["pipe", "link", "/dev/stdout"])
def test_nor_does_it_wait_for_a_pipe(world: World, tmp_path: Path, place: str) -> None:
    file = write_facts(tmp_path / "facts.jsonl", make_facts(1, start=10))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    status, out, err = run_malmen(world, "plan", file, "--quick", "-o", tmp_path / place)
    assert (status, out) == (2, "") and "is there already and is not a plan" in err


def test_facts_of_the_file_are_not_asked_again_as_earlier_ones(world: World) -> None:
    applied = world.apply(*make_facts(5))  # three of them are active already
    assert applied.check is not None and applied.check.checked_old == 0
    assert len(applied.check.wrong) == len({wrong.prompt for wrong in applied.check.wrong})


def test_the_command(world: World, tmp_path: Path) -> None:
    file = write_facts(tmp_path / "facts.jsonl", list(mixed()))
    before = everything(world)
    status, out, err = run_malmen(world, "plan", file, "--json")
    assert status == 0, err
    said = json.loads(out)
    assert (said["new"], said["already_active"], len(said["superseded"]), said["active"]) == (2, 1, 1, 5)
    assert len(said["facts"]) == 4 and said["prediction"]["seconds"] > 0
    memory = said["memory_plan"]
    assert memory["devices"] == ["cpu"] and memory["free"]["cpu"] > memory["weights"] > 0
    assert memory["total"] > memory["libraries"] + memory["weights"]
    status, out, err = run_malmen(world, "plan", file, "-o", tmp_path / "plan.json")
    assert status == 0 and "do not predict success" in err and "--plan" in err
    assert "largest residuals" in out and "Memory by the model's configuration: " in out
    status, out, err = run_malmen(world, "plan", file, "--quick", "-q")
    assert status == 0 and len(out.split()) == 3
    status, out, err = run_malmen(world, "apply", file, "--dry-run")
    assert status in (0, 3) and "nothing was written" in out
    assert everything(world) == before
    status, out, err = run_malmen(world, "apply", "--plan", tmp_path / "plan.json", "-q")
    assert status in (0, 3), err
    with world.ledger() as (ledger, model), ledger.read() as db:
        now = active_now(db, model)
        assert out.strip() == store.head(db, model.id).id
        assert active_digest(now.editor_id, now.facts) == said["active_digest"]
