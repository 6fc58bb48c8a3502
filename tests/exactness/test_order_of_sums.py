"""Entries commute in float64 already: the checkpoint's dtype must not be what hides another order of summation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import World, make_facts, make_world
from torch import Tensor

from malmen_cli.ledger import store
from malmen_cli.operations.active import active_now
from malmen_cli.operations.rows import RowReader
from malmen_cli.operations.solving import solve_active
from malmen_cli.operations.workbench import Workbench


@pytest.mark.parametrize("count", [8, 60], ids=["kernel form", "primal form"])
def test_a_then_b_is_b_then_a_in_every_bit_of_s(count: int, tmp_path: Path) -> None:
    world = make_world(tmp_path / "world")
    a, b = make_facts(count // 2), make_facts(count // 2, start=count // 2)
    world.apply(*a)
    world.apply(*b)
    a_then_b = shifts(world)
    world.revert("#2")
    world.revert("#3")
    world.apply(*b)
    world.apply(*a)
    assert all(map(torch.equal, a_then_b, shifts(world)))
    # The control: the same rows summed in another order round otherwise.
    assert not all(map(torch.equal, a_then_b, shifts(world, backwards=True)))


def shifts(world: World, *, backwards: bool = False) -> list[Tensor]:
    """S of every layer, float64, over the active facts."""
    found: list[Tensor] = []
    with world.ledger() as (ledger, model):
        with ledger.read() as db:
            now = active_now(db, model)
            assert now.editor_id is not None
            editor = store.editor(db, now.editor_id)
        bench = Workbench(ledger, model, editor, now.facts)
        solve_active(
            ledger,
            model,
            bench.editor,
            bench.layers,
            lambda layer: bench.rows(layer)[:: -1 if backwards else 1],
            RowReader(ledger.objects),
            bench.state,
            bench.device,
            inspect=lambda layer, solution, rows: found.append(solution.param_shift),
        )
    return found
