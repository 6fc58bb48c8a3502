"""An entry says the same of its facts in whatever blocks they are asked; of many wrong ones it names some."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import World, load, make_facts, make_world

from malmen_cli.cli import check_tables
from malmen_cli.facts import FactSet
from malmen_cli.language_models.tokenizing import Tokenizing
from malmen_cli.operations import checking
from malmen_cli.operations.apply import ApplyOptions, apply_facts
from malmen_cli.operations.checking import Check

OLD, NEW = make_facts(3), make_facts(9, start=3)


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = make_world(tmp_path)
    world.apply(*OLD)
    return world


def check(world: World) -> Check:
    with world.ledger() as (ledger, model):
        applied = apply_facts(ledger, model, FactSet(tuple(NEW), "new"), ApplyOptions(dry_run=True), "malmen apply")
    assert applied.check is not None
    return applied.check


def test_blocks_make_no_difference(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = check(world)
    assert at_once.still_wrong == len(at_once.wrong) > 1
    assert at_once.before.locality is not None and at_once.before.generalization is not None
    monkeypatch.setattr(checking, "BLOCK", 2)
    assert check(world) == at_once


def test_an_active_fact_that_would_be_refused_today_keeps_no_other_from_being_applied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:  # a malmen that took such targets
        earlier.setattr(Tokenizing, "_require_sayable", lambda *_: None)
        world.apply(replace(make_facts(1, start=20)[0], target="Paris</s>"))
    assert check(world).checked_old == len(OLD)


def test_the_first_that_are_wrong_are_named_all_are_counted_and_old_ones_are_always_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = check(world)
    new, old = ([wrong for wrong in everything.wrong if wrong.new is is_new] for is_new in (True, False))
    assert len(new) > 1 and old
    monkeypatch.setattr(checking, "NAMED", 1)
    assert check(world) == replace(everything, wrong=[*new[:1], *old])
    assert check(world).as_dict()["still_wrong"] == len(new) + len(old)


def test_an_answer_that_is_wrong_ends_with_its_first_wrong_token(world: World) -> None:
    """Behind it the target's own tokens were read: nobody would ever be told the rest."""
    model = load(world.checkpoint)
    fact = replace(NEW[0], target=" ".join(other.target for other in NEW[1:5]))
    tokens = model.tokenizing(fact.prompt, fact.target)
    first, second, *others = tokens.labels
    assert others and first != second
    predicted = [first, first, *reversed(others)]
    wrong = checking._Wrong(model, 1)
    assert list(wrong.watch([fact], [(tokens, predicted)], is_new=True)) == [(tokens, predicted)]
    assert [named.answer for named in wrong.named] == [model.tokenizing.text_of([first, first])]


@pytest.mark.parametrize("named", [3, 1000])
def test_of_many_wrong_facts_it_is_said_where_more_are_named_and_how_many(
    world: World, named: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checking, "NAMED", named)
    monkeypatch.setattr(check_tables, "SHOWN_WRONG", 2)
    found = check(world)
    check_tables.print_check(found)
    where = "--json" if named == 1000 else f"--json names {len(found.wrong)}"
    assert len(found.wrong) > 2
    assert f"... and {found.still_wrong - 2} more ({where})\n" in capsys.readouterr().out
