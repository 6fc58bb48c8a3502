"""`malmen show`: what became of an entry's facts since."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ledger_world import apply, fact, make_world, revert, tiny
from program import run_here

from malmen_cli.ledger import Ledger, store


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
        assert "reverted" in run_here(capfd, "show", "#2", *place)[1]
