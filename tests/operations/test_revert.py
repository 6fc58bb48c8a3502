"""What a revert says of the facts that it names: which have moved, which have not and why, and who did it before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import World, make_facts, make_world, run_malmen

from malmen_cli.errors import UsageError
from malmen_cli.operations.revert import Reverted

A, B, C = make_facts(3)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def counts(done: Reverted) -> tuple[int, int, dict[str, int]]:
    return len(done.removed), len(done.revived), {why: len(facts) for why, facts in done.unmoved.items()}


def test_a_fact_that_another_entry_holds_stays_and_it_is_said(world: World) -> None:
    world.apply(A)
    world.apply(replace(A, tags=("other",)), B)  # another record of the same edit
    assert counts(world.revert("#2")) == (0, 0, {"in force by another entry too": 1})
    assert "  0 facts of " in run_malmen(world, "log", "-n", "1")[1]
    _, out, _ = run_malmen(world, "revert", "HEAD")
    assert ": 0 facts out, 0 back, 2 active in tiny" in out and "\nNot moved: 1 fact, in force before.\n" in out
    assert counts(world.revert("#3")) == (1, 0, {"in force by another entry too": 1})


def test_facts_that_were_superseded_are_not_counted_as_taken_out(world: World) -> None:
    world.apply(A, B, C)
    world.apply(replace(A, target=B.target))
    done = world.revert("#2")
    assert counts(done) == (2, 0, {"superseded or reverted before": 1})
    assert done.entry.details["facts"] == {"taken_out": 3, "removed": 2, "revived": 0, "active": 1}
    assert "2 facts of " in run_malmen(world, "log", "-n", "1")[1]
    back = world.revert("HEAD")
    assert counts(back) == (0, 2, {"superseded, or reverted by another entry too": 1})


def test_what_is_reverted_already_names_who_did_it(world: World) -> None:
    world.apply(A, B)
    first, second = world.revert("#2", 1).entry, world.revert("#2", 2).entry
    with pytest.raises(UsageError) as refusal:
        world.revert("#2")
    names = [entry.id[7:17] for entry in (first, second)]
    assert refusal.value.message == f"entry #2 is reverted already, by {', '.join(names)}"
    assert all(f"malmen revert {name}" in str(refusal.value.remedy) for name in names)
    with pytest.raises(UsageError, match=f"those facts are reverted already, by {names[1]}"):
        world.revert("#2", 2)
    assert counts(world.revert(names[0])) == (0, 1, {})
    assert counts(world.revert("HEAD^")) == (0, 1, {})  # the second, which is now the one before
