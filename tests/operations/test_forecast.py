"""What a plan reckons without trying: its counts against what torch counts while the same is run, and its sums."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import FAMILIES, save_family_model
from tiny_models import (
    TINY_TRAINING,
    World,
    fact_set,
    load,
    make_fact,
    make_facts,
    make_world,
    run_malmen,
    save_tiny_model,
    world_of,
    write_facts,
)
from torch.utils._python_dispatch import TorchDispatchMode

from malmen_cli.editing.normal_equation import NormalEquation, PreservedKeys
from malmen_cli.language_models.arithmetic import Arithmetic, BlockRates, Passes, arithmetic_of, passes
from malmen_cli.language_models.block_rates import _one_block, block_rates
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.loading import read_config
from malmen_cli.language_models.lower_states import LowerStates, starts_of
from malmen_cli.ledger import store
from malmen_cli.operations.forecast import PHASES, Counts, LayerCounts, forecast, solve_seconds
from malmen_cli.operations.rates import WRITE_RATE, Rates, write_rate


class Counter(TorchDispatchMode):
    """Floating-point operations of the plain matrix products that are run within; attention's own are batched ones."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            left = args[-2]
            self.operations += 2 * out.numel() * left.shape[1]
        return out


RATES = Rates(
    start=4.0,
    model=BlockRates(flops=1.0, backward=1.0, bytes=float("inf"), item=4),
    single=1e11,
    double=1.0,
    factor=float("inf"),
    eigenvalues=float("inf"),
    triangular=float("inf"),
    sweep=float("inf"),
    copy=float("inf"),
    digest=float("inf"),
    write=1e9,
    rows=float("inf"),
    texts=float("inf"),
)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_passes_are_counted_as_torch_counts_them(family: Any, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", family)
    model = LanguageModel(folder)
    texts = [model.tokenizing(fact.prompt, fact.target) for fact in make_facts(9)]
    arithmetic = arithmetic_of(model.model, model.layers)
    work = passes(model.tokenizing.batches(texts, 40))
    assert work.texts == 9 and work.labels == sum(text.supervised for text in texts) and work.batches > 1
    with Counter() as counter, torch.no_grad():
        model.predictions(texts, batch_tokens=40)
    # Rates of one operation per second: seconds are operations.
    assert RATES.model.seconds(arithmetic, work) == counter.operations
    kept = LowerStates(model, starts_of(model, texts))
    list(kept.fill(40, len(texts)))
    with Counter() as counter, torch.no_grad():
        model.predictions(texts, batch_tokens=40, kept=kept)
    assert RATES.model.seconds(arithmetic, work, resumed=True) == counter.operations
    with Counter() as counter:
        list(model.capture(texts, batch_tokens=40))
    assert RATES.model.seconds(arithmetic, work, differentiated=True) == pytest.approx(counter.operations, rel=0.02)


@pytest.mark.parametrize(("rows", "anchors"), [(5, 0), (5, 24), (20, 40), (100, 64), (300, 0)])
def test_a_solve_is_counted_as_torch_counts_it(rows: int, anchors: int) -> None:
    torch.manual_seed(0)
    d, o = 64, 48
    preserved = PreservedKeys(torch.randn(anchors, d)) if anchors else None
    with Counter() as counter:
        equation = NormalEquation(d, o, preserved=preserved)
        equation.update(torch.randn(rows, d), torch.randn(rows, o))
        equation.solve(ridge=0.1, preserved_strength=1.0 if anchors else 0.0)
    layer = LayerCounts(d_in=d, d_out=o, new=rows, rows=rows, facts=rows, anchors=anchors, item=4, key_item=4)
    reckoned = solve_seconds(layer, RATES) - 2 * d * o * o  # the change's figures
    # At this size a Gram matrix is one block, of which nothing is left out; and triangular solves are no products.
    assert 0.4 < reckoned / counter.operations < 1.1


def test_a_faster_machine_takes_less_time_but_to_start() -> None:
    layers = (LayerCounts(d_in=64, d_out=16, new=8, rows=20, facts=20, anchors=8, item=4, key_item=4),)
    counts = Counts(
        model=Arithmetic({"encoder": 0, "answer": 1000}, {"encoder": 0, "answer": 500}, 200),
        layers=layers,
        capture=Passes(8, 1, 0, 80, 8),
        asked=Passes(24, 1, 0, 240, 24),
        old=Passes(12, 1, 0, 120, 12),
        answers=Passes(5, 5, 0, 50, 5),
        texts=36,
        rank=4,
        blocks=1,
        weights=1 << 20,
        checkpoint=1 << 20,
        shards=1 << 20,
        largest_shard=1 << 20,
        editor=1 << 16,
    )
    slow = replace(RATES, **dict.fromkeys(("copy", "digest", "sweep", "factor", "eigenvalues", "rows", "texts"), 1e6))
    fast = replace(
        slow,
        model=BlockRates(2.0, 2.0, float("inf"), 4),
        **{name: 2 * getattr(slow, name) for name in Rates.__dataclass_fields__ if name not in ("start", "model")},
    )
    taken, less = forecast(counts, slow), forecast(counts, fast)
    assert tuple(taken) == PHASES
    for phase in PHASES:
        assert less[phase] == pytest.approx(taken[phase] / (1 if phase in ("start", "end") else 2)), phase
    more = forecast(replace(counts, old=counts.old.times(2)), slow)
    assert more["ask after"] > taken["ask after"] and more["ask before"] == taken["ask before"]
    # Of what is asked twice, 1,500 weights and 200 at labels, half runs 600 weights less the second time.
    kept = replace(counts, model=replace(counts.model, kept_out={"encoder": 0, "answer": 600}), kept=0.5)
    assert taken["ask after"] - forecast(kept, slow)["ask after"] == pytest.approx(0.5 * 2 * 240 * 600)
    noted = forecast(replace(kept, noted=kept.capture), slow)  # and 80 tokens of them the first time too
    assert taken["ask before"] - noted["ask before"] == pytest.approx(0.5 * 2 * 80 * 600)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_has_a_block_that_can_be_timed(family: str, tmp_path: Path) -> None:
    config = read_config(save_family_model(tmp_path / "model", family))
    layers = config.get_text_config().num_hidden_layers
    model = _one_block(config, torch.float32, torch.device("cpu"))
    assert config.get_text_config().num_hidden_layers == layers > 1  # which is left as it was
    assert model.config.get_text_config().num_hidden_layers == 1
    rates = block_rates(config, torch.float32, torch.device("cpu"), batch_tokens=64, length=8)
    assert all(0 < rate < float("inf") for rate in (rates.flops, rates.backward, rates.bytes)) and rates.item == 4


def test_writing_is_tried_where_nothing_is_left_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert write_rate(tmp_path, 1 << 16) > 0 and not list(tmp_path.iterdir())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert write_rate(tmp_path) == WRITE_RATE


class TestQuick:
    @pytest.fixture(scope="class")
    def world(self, tmp_path_factory: pytest.TempPathFactory) -> World:
        world = make_world(tmp_path_factory.mktemp("world"))
        world.apply(*make_facts(3))
        return world

    def planned(self, world: World, file: Path, *options: str) -> dict[str, Any]:
        status, out, err = run_malmen(world, "plan", file, "--json", *options)
        assert status == 0, err
        said: dict[str, Any] = json.loads(out)
        return said

    def test_it_predicts_what_a_trial_predicts(self, world: World, tmp_path: Path) -> None:
        file = write_facts(tmp_path / "facts.jsonl", [*make_facts(5, start=10), make_fact(0)])
        quick, full = (self.planned(world, file, *options) for options in (["--quick"], []))
        assert quick["facts"] is None and len(full["facts"]) == 6
        for said in (quick, full):
            found = said["prediction"]
            assert found["seconds"] == pytest.approx(sum(found["phases"].values())) and tuple(found["phases"]) == PHASES
        assert quick["prediction"]["temporary"] == full["prediction"]["temporary"]
        # A pack of rows has a header besides.
        assert quick["prediction"]["disk"] == pytest.approx(full["prediction"]["disk"], rel=0.3)
        assert quick["memory_plan"]["total"] == full["memory_plan"]["total"] == quick["prediction"]["memory"]

    def test_in_words(self, world: World, tmp_path: Path) -> None:
        file = write_facts(tmp_path / "facts.jsonl", make_facts(2, start=10))
        status, out, err = run_malmen(world, "plan", file, "--quick")
        assert status == 0 and "Applying would take about " in out and "largest residuals" not in out, err

    def test_nothing_to_do_takes_nothing(self, world: World, tmp_path: Path) -> None:
        file = write_facts(tmp_path / "facts.jsonl", make_facts(2))
        assert self.planned(world, file, "--quick")["prediction"] is None


def test_rows_that_are_stored_are_not_captured_again(tmp_path: Path) -> None:
    from malmen_cli.operations.active import propose
    from malmen_cli.operations.apply import ApplyOptions
    from malmen_cli.operations.reckoning import reckon

    world = make_world(tmp_path)
    facts = make_facts(6)
    world.apply(*facts[:4])
    world.revert("HEAD")
    with world.ledger() as (ledger, model):
        counts = reckon(ledger, propose(ledger, model, fact_set(facts), None), ApplyOptions()).counts
        with ledger.read() as db:
            assert store.head(db, model.id).kind == "revert"
    tokens = load(world.checkpoint, float64=False).tokenizing
    rows = [tokens(fact.prompt, fact.target).supervised for fact in facts]
    for layer in counts.layers:
        assert (layer.rows, layer.facts) == (sum(rows), 6)
        assert layer.new == sum(rows[4:])
    assert (counts.asked.texts, counts.old.texts, counts.texts) == (18, 0, 18)


@pytest.mark.parametrize(("family", "dtype"), [("gpt2", "bfloat16"), ("t5", "auto")])
def test_stored_rows_are_counted_as_they_will_be(family: str, dtype: Any, tmp_path: Path) -> None:
    """In the dtype that the model is run in, whatever its files have; of an encoder every token but padding."""
    from malmen_cli.operations.active import propose
    from malmen_cli.operations.apply import ApplyOptions
    from malmen_cli.operations.reckoning import reckon

    training = TINY_TRAINING.model_copy(update={"dtype": dtype})
    world = world_of(save_family_model(tmp_path / "model", family), training=training)
    long = replace(make_fact(9), prompt=f"{make_fact(9).prompt} and it lies in the land of which the name is known to")
    facts = fact_set([*make_facts(5), long])
    with world.ledger() as (ledger, model):
        counts = reckon(ledger, propose(ledger, model, facts, None), ApplyOptions()).counts
    world.apply(*facts)
    with world.ledger() as (ledger, model), ledger.read() as db:
        packs = [ledger.objects.size(pack.object) for pack in store.packs_of(db, store.head(db, model.id).id)]
    assert len(packs) == len(counts.layers)
    found = sorted(size for size in packs if size is not None)
    wanted = sorted(layer.new * layer.row_bytes for layer in counts.layers)
    # A pack has a header besides.
    assert all(0 <= size - count <= 256 for size, count in zip(found, wanted, strict=True))


def test_long_texts_take_more_memory_than_short_ones(tmp_path: Path) -> None:
    """Of a few facts, that is: of many, a batch has as many tokens whatever their length."""
    from malmen_cli.operations.active import propose
    from malmen_cli.operations.apply import ApplyOptions
    from malmen_cli.operations.reckoning import reckon

    world = make_world(tmp_path)
    short = make_facts(3)
    long = [replace(fact, prompt="of the " * 15 + fact.prompt, rephrases=(), unrelated=()) for fact in short]
    with world.ledger() as (ledger, model):
        batches = [
            reckon(ledger, propose(ledger, model, fact_set(facts), None), ApplyOptions()).memory["batch"]
            for facts in (short, long)
        ]
    assert batches[1] > 1.5 * batches[0]
