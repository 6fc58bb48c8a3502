"""Of every task: the same facts give the same shift, whatever their batches, and whatever came and went before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from family_journey import make_family_world
from family_models import FAMILIES
from safetensors.torch import load_file
from tiny_models import Fact, World, fact_set, make_claims, make_facts

from malmen_cli.operations.apply import ApplyOptions, apply_facts

NAMES = ["gemma3_text", "t5_gated", "bart", "roberta"]


def facts_of(name: str) -> list[Fact]:
    return (make_claims if FAMILIES[name].task == "classification" else make_facts)(5, 4)


def weights(world: World) -> dict[str, torch.Tensor]:
    return load_file(world.checkpoint / "model.safetensors")


def difference(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], base: dict[str, torch.Tensor]) -> float:
    """The largest |a - b| / |b - base| of an edited tensor."""
    found = [float((a[name] - b[name]).norm() / (b[name] - base[name]).norm()) for name in base if moved(b, base, name)]
    assert found
    return max(found)


def moved(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], name: str) -> bool:
    return not torch.equal(a[name], b[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_fact_that_is_taken_out_leaves_what_the_others_alone_give(name: str, tmp_path: Path) -> None:
    facts = facts_of(name)
    world, other = make_family_world(tmp_path / "one", name), make_family_world(tmp_path / "other", name)
    base = weights(world)
    world.apply(*facts)
    with_all = weights(world)
    assert world.revert("HEAD", 2).solved
    other.apply(*facts[:1], *facts[2:])
    assert difference(weights(world), weights(other), base) <= 1e-5
    assert difference(with_all, weights(other), base) > 0.01  # a control: the fact makes a difference


@pytest.mark.parametrize("name", NAMES)
def test_batches_make_no_difference(name: str, tmp_path: Path) -> None:
    facts = facts_of(name)
    found = []
    for batch_tokens in (1, 10_000):
        world = make_family_world(tmp_path / str(batch_tokens), name)
        base = weights(world)
        with world.ledger() as (ledger, model):
            options = ApplyOptions(sample=0, batch_tokens=batch_tokens)
            apply_facts(ledger, model, fact_set(facts), options, "malmen apply")
        found.append(weights(world))
    assert difference(*found, base) <= 1e-5
