"""`malmen show`: what became of an entry's facts since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ledger_world import apply, fact, make_world, revert, tiny
from program import run_here

from malmen_cli.ledger import Entry, Ledger, store


def entries_of(ledger: Ledger) -> list[Entry]:
    with ledger.read() as db:
        return store.entries(db, tiny(ledger).id)


def test_what_was_superseded_or_reverted_is_not_in_effect(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    workspace, _ = make_world(tmp_path)
    place = ("--workspace", workspace.root)

    def shown() -> list[tuple[str, bool]]:
        _, out, _ = run_here(capfd, "show", "#2", "--json", *place)
        return [(fact["target"], fact["in_effect"]) for fact in json.loads(out)["facts"]]

    with Ledger.open(workspace, writing=True) as ledger:
        apply(ledger, fact("a", "Rome"), fact("b", "Oslo"))
        assert shown() == [("Rome", True), ("Oslo", True)]
        apply(ledger, fact("a", "Paris"))
        assert shown() == [("Rome", False), ("Oslo", True)]
        assert "superseded" in run_here(capfd, "show", "#2", *place)[1]
        with ledger.read() as db:
            later, first = store.head(db, tiny(ledger).id), store.resolve_entry(db, "#2", None)
        revert(ledger, later)  # which revives it
        assert shown() == [("Rome", True), ("Oslo", True)]
        revert(ledger, first)
        assert shown() == [("Rome", False), ("Oslo", False)]
        assert "2, 2 reverted by " in run_here(capfd, "show", "#2", *place)[1]


def test_what_a_revert_of_a_revert_puts_back_is_said_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    workspace, _ = make_world(tmp_path)
    place = ("--workspace", workspace.root)
    with Ledger.open(workspace, writing=True) as ledger:
        apply(ledger, fact("a"), fact("b"))
        for number in (2, 3):
            with ledger.read() as db:
                entry = store.resolve_entry(db, f"#{number}", None)
            revert(ledger, entry)
        assert [e.kind for e in entries_of(ledger)] == ["revert", "revert", "apply", "register"]
    said = run_here(capfd, "log", *place)[1].splitlines()
    assert " put back, " in said[0] and " taken out, " in said[1]
    assert "2 put back, which " in run_here(capfd, "show", "#4", *place)[1]
    put_back = said[0].split()[1]
    assert said[1].endswith(f"  reverted by {put_back}") and "reverted by" not in said[2]
    assert "2 taken out of " in (shown := run_here(capfd, "show", "#3", *place)[1])
    assert f"reverted by {put_back} since" in shown
    [by] = {fact["reverted_by"] for fact in json.loads(run_here(capfd, "show", "#3", "--json", *place)[1])["facts"]}
    assert by.startswith(f"sha256:{put_back}")
    with Ledger.open(workspace, writing=True) as ledger:
        revert(ledger, entries_of(ledger)[0])  # and out again
    said = run_here(capfd, "log", *place)[1].splitlines()
    assert " taken out, " in said[0] and " put back, " in said[1] and " taken out, " in said[2]
    assert "2 taken out of " in run_here(capfd, "show", "HEAD", *place)[1]


def test_a_reverted_fact_that_another_entry_holds_is_in_effect(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    workspace, _ = make_world(tmp_path)
    place = ("--workspace", workspace.root)
    with Ledger.open(workspace, writing=True) as ledger:
        apply(ledger, fact("a", "Rome"), fact("b"))
        apply(ledger, fact("a", "Paris"))
        apply(ledger, fact("a", "Rome"))
        with ledger.read() as db:
            first = store.resolve_entry(db, "#2", None)
        revert(ledger, first)
    facts = json.loads(run_here(capfd, "show", "#2", "--json", *place)[1])["facts"]
    assert [(fact["target"], fact["in_effect"]) for fact in facts] == [("Rome", True), (fact("b").target, False)]
    assert "2, 1 held by another entry, 1 reverted by " in run_here(capfd, "show", "#2", *place)[1]
