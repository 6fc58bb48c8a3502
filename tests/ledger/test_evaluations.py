"""Evaluations in the ledger: kept whole, found again, verified, dropped only when told to; upgrades bless nothing."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from ledger_world import EDITOR, apply, dump, fact, make_world, tiny

from malmen_cli.errors import UnknownName, UnusableLedger
from malmen_cli.facts import FactSet
from malmen_cli.ledger import Ledger, Workspace, collect, collectable, seals, store, verify_ledger
from malmen_cli.ledger.collection import SCOPES
from malmen_cli.ledger.connection import connect, schema_revision
from malmen_cli.ledger.evaluations import (
    Evaluation,
    evaluation_named,
    evaluations,
    keep_evaluation,
    results_of,
    sizes,
)
from malmen_cli.ledger.schema_upgrade import alembic_config, migration_engine, upgrade_schema

RESULTS = [{"digest": fact(name).digest, "prompt": name, "edit": {"accuracy": 0.5}} for name in ("a", "ü\u2028")]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    workspace, _ = make_world(tmp_path)
    with Ledger.open(workspace, writing=True) as ledger:
        apply(ledger, fact("a"))
        yield ledger


def keep(ledger: Ledger, *, of_entry: bool = False) -> Evaluation:
    with ledger.read() as db:
        head = store.head(db, tiny(ledger).id)
    return keep_evaluation(
        ledger,
        RESULTS,
        model_id=tiny(ledger).id,
        facts_digest=FactSet((fact("a"),), source="").digest,
        details={"scores": {"ES": 0.5}},
        entry_id=head.id if of_entry else None,
        editor_id=EDITOR,
        source="facts.jsonl",
        command="malmen eval facts.jsonl",
    )


def problems(ledger: Ledger, *, quick: bool = False) -> list[str]:
    return [str(problem) for problem in verify_ledger(ledger, quick=quick).problems]


def test_what_is_kept_is_found_again(ledger: Ledger) -> None:
    first, second = keep(ledger), keep(ledger, of_entry=True)
    assert first.id != second.id and first.facts == len(RESULTS)
    with Ledger.open(ledger.workspace) as reader, reader.read() as db:
        assert evaluations(db) == evaluations(db, tiny(ledger).id) == [second, first]
        assert evaluation_named(db, first.id) == evaluation_named(db, first.id[7:17].upper()) == first
        assert results_of(db, first) == RESULTS
        assert sizes(db)[first.id] == sum(
            len(json.dumps(result, ensure_ascii=False, separators=(",", ":")).encode()) for result in RESULTS
        )
    assert problems(ledger) == problems(ledger, quick=True) == []
    assert verify_ledger(ledger).checked["evaluations"] == 2


def test_nothing_else_of_the_ledger_changes(ledger: Ledger) -> None:
    before = dump(ledger.workspace)
    keep(ledger)
    after = dump(ledger.workspace)
    changed = {table for table in after if after[table] != before[table]}
    assert changed == {"evaluations", "evaluation_results", "seals"}


def test_all_or_nothing(ledger: Ledger) -> None:
    before = dump(ledger.workspace)
    with pytest.raises(sqlite3.IntegrityError):
        keep_evaluation(ledger, RESULTS, model_id=99, facts_digest="sha256:" + "0" * 64, details={})
    assert dump(ledger.workspace) == before


@pytest.mark.parametrize("name", ["", "abc", "zzzz", "sha256:", "HEAD", "#1", "0" * 64])
def test_names_of_none_are_refused_with_the_command_that_lists_them(ledger: Ledger, name: str) -> None:
    keep(ledger)
    with ledger.read() as db, pytest.raises(UnknownName) as refusal:
        evaluation_named(db, name)
    assert refusal.value.remedy == "see malmen eval --list"


def test_an_entry_is_no_evaluation_and_an_evaluation_is_no_entry(ledger: Ledger) -> None:
    kept = keep(ledger)
    with ledger.read() as db:
        with pytest.raises(UnknownName, match="is an evaluation, not an entry") as refusal:
            store.resolve_entry(db, kept.id)
        assert f"malmen eval --show {kept.id}" in str(refusal.value.remedy)
        with pytest.raises(UnknownName):
            evaluation_named(db, store.head(db, tiny(ledger).id).id)


class TestTampering:
    """A sample; tests/tampering tries every column of every row."""

    @pytest.mark.parametrize(
        ("statement", "quickly"),
        [
            ("UPDATE evaluations SET source = 'other.jsonl'", True),
            ('UPDATE evaluations SET details = \'{"scores":{"ES":1.0}}\'', True),
            ("DELETE FROM evaluations", True),
            ("UPDATE evaluation_results SET content = replace(content, '0.5', '1.0')", False),
            ("UPDATE evaluation_results SET position = 7 WHERE position = 1", False),
            ("UPDATE evaluation_results SET fact_digest = 'sha256:0'", False),
            ("DELETE FROM evaluation_results WHERE position = 1", False),
        ],
    )
    def test_is_found(self, ledger: Ledger, statement: str, quickly: bool) -> None:
        kept = keep(ledger)
        with closing(sqlite3.connect(ledger.workspace.database)) as db, db:
            db.execute(statement)
        assert any("evaluation" in problem for problem in problems(ledger))
        assert bool(problems(ledger, quick=True)) == quickly
        assert problems(ledger, quick=quickly)[0].count(kept.id[7:17]) >= 1

    def test_a_seal_renewed_by_a_stranger_does_not_hide_it(self, ledger: Ledger) -> None:
        kept = keep(ledger)
        with closing(sqlite3.connect(ledger.workspace.database)) as db, db:
            db.execute("UPDATE evaluations SET source = 'other.jsonl'")
            seals.seal_all(db)
        [problem] = problems(ledger)
        assert kept.id[7:17] in problem and "its id no longer follows" in problem


class TestCollection:
    def test_gc_drops_evaluations_only_when_told_to(self, ledger: Ledger) -> None:
        kept = keep(ledger)
        others = [scope for scope in SCOPES if scope != "evaluations"]
        collect(ledger, collectable(ledger, others), "malmen gc")
        [item] = collectable(ledger, ["evaluations"])
        assert (item.name, "facts.jsonl" in item.what) == (kept.id, True) and item.size > 0
        assert [dropped.name for dropped in collect(ledger, [item], "malmen gc")] == [kept.id]
        rows = dump(ledger.workspace)
        assert rows["evaluations"] == rows["evaluation_results"] == [] and problems(ledger) == []
        assert ledger.workspace.database.is_file()

    def test_an_unused_editor_goes_and_its_evaluations_stay(self, ledger: Ledger) -> None:
        keep_evaluation(
            ledger,
            RESULTS,
            model_id=tiny(ledger).id,
            facts_digest="sha256:" + "0" * 64,
            details={},
            editor_id="gone",
        )
        assert problems(ledger) == []


class TestUpgrade:
    @pytest.fixture
    def old(self, tmp_path: Path) -> Workspace:
        """A ledger of revision 0003."""
        workspace, _ = make_world(tmp_path)
        with Ledger.open(workspace, writing=True) as ledger:
            apply(ledger, fact("a"))
        config = alembic_config()
        config.attributes["connection"] = engine = migration_engine(workspace.database)
        command.downgrade(config, "0003")
        engine.dispose()
        return workspace

    def test_of_a_sound_ledger_keeps_it_so(self, old: Workspace) -> None:
        with Ledger.open(old, writing=True) as ledger:
            assert problems(ledger) == []
            keep(ledger)
            assert problems(ledger) == []

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE editors SET scores = '{\"ES\":1.0}'",
            "UPDATE settings SET value = 'other'",
            "DELETE FROM seals WHERE name = 'schema'",
            "INSERT INTO splits VALUES ('zsre', '/x', NULL, NULL, 'sha256:0', 1, 'now')",
        ],
    )
    def test_of_one_with_a_broken_seal_is_refused_and_changes_nothing(self, old: Workspace, statement: str) -> None:
        """An upgrade makes every seal anew: it would bless what a stranger did."""
        with closing(connect(old.database, writing=True)) as db:
            db.execute(statement)
        before = dump(old)
        with pytest.raises(UnusableLedger, match="cannot be upgraded") as refusal:
            upgrade_schema(old)
        assert refusal.value.remedy
        with pytest.raises(UnusableLedger):
            Ledger.open(old, writing=True)
        assert dump(old) == before and schema_revision(old) == "0003"

    def test_nor_does_a_downgrade_bless_it(self, ledger: Ledger) -> None:
        keep(ledger)
        with closing(connect(ledger.workspace.database, writing=True)) as db:
            db.execute("UPDATE evaluations SET source = 'other.jsonl'")
        config = alembic_config()
        config.attributes["connection"] = engine = migration_engine(ledger.workspace.database)
        with pytest.raises(UnusableLedger, match="cannot be"):
            command.downgrade(config, "0003")
        engine.dispose()
        assert schema_revision(ledger.workspace) == "0004"
