"""`malmen verify` as a command: a database that cannot be opened, --quick, --expect and --anchor, no false alarms."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from figures import Figures
from ledger_world import FAST, apply, fact, make_world
from rich_world import rich_world
from tampered_world import run

from malmen_cli.checkpoint.digests import digest_file
from malmen_cli.errors import ExitCode
from malmen_cli.ledger import Ledger, Workspace, add_split, seals, store, verify_ledger
from malmen_cli.ledger.connection import connect


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    with TemporaryDirectory(dir=FAST) as folder:
        yield rich_world(Path(folder))


def verify(workspace: Workspace, *options: str) -> tuple[int, str]:
    return run("verify", *options, "--workspace", workspace.root)


def tamper(workspace: Workspace, *statements: str) -> None:
    with closing(sqlite3.connect(workspace.database)) as db, db:
        for statement in statements:
            db.execute(statement)


def replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def act(database: Path) -> None:
        database.unlink()
        make(database)

    return act


def overwritten(*parts: tuple[int, bytes]) -> Callable[[Path], None]:
    def act(database: Path) -> None:
        with database.open("r+b") as file:
            for place, data in parts:
                file.seek(place)
                file.write(data)

    return act


# What makes a database that cannot be opened at all, and what the report of it says.
LOST = {
    "its header destroyed": (overwritten((0, b"\xff" * 100)), "not a database"),
    "its first page destroyed": (overwritten((100, b"\xff" * 3000)), "ledger.db"),
    "cut to its first page": (lambda database: os.truncate(database, 4096), "ledger.db"),
    "cut inside its header": (lambda database: os.truncate(database, 50), "ledger.db"),
    "emptied": (lambda database: os.truncate(database, 0), "missing or empty"),
    "deleted": (Path.unlink, "missing or empty"),
    "a folder": (replaced(Path.mkdir), "not a file"),
    "a pipe": (replaced(os.mkfifo), "not a file"),
    "another program's": (replaced(lambda path: tamper(Workspace(path.parent), "CREATE TABLE a (b)")), "tables"),
}  # fmt: skip
ALTERED = {
    "of another revision": (("UPDATE alembic_version SET version_num = '7'",), "newer malmen"),
    "of an older revision, it says": (("UPDATE alembic_version SET version_num = '0002'",), "tables of its schema"),
    "of no revision": (("DELETE FROM alembic_version",), "tables of its schema"),
    "without a table": (("DROP TABLE splits",), "tables of its schema"),
    "with a trigger": (("CREATE TRIGGER t AFTER INSERT ON facts BEGIN DELETE FROM facts; END",), "did not make"),
    "with a view": (("CREATE VIEW v AS SELECT 1",), "did not make"),
}
READING = ("log", "show HEAD -m tiny", "models list", "data list", "diff -m tiny", "recover", "gc --states --yes")


@pytest.mark.parametrize("damage", [*LOST, *ALTERED])
def test_a_database_that_cannot_be_opened_is_damage_too(workspace: Workspace, damage: str) -> None:
    with closing(sqlite3.connect(workspace.database)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if damage in LOST:
        act, words = LOST[damage]
        act(workspace.database)
    else:
        statements, words = ALTERED[damage]
        tamper(workspace, *statements)
    for options in ((), ("--quick",), ("--json",), ("--model", "tiny"), ("--expect", "0" * 64)):
        status, said = verify(workspace, *options)
        assert status == ExitCode.VERIFICATION_FAILED, (options, said)
        assert words in said and "ledger.db" in said, said
    for command in READING:
        status, said = run(*command.split(), "--workspace", workspace.root)
        assert status == ExitCode.FAILED, (command, said)
        assert said.startswith("malmen: ") and "ledger.db" in said and "unexpected" not in said, (command, said)


def test_an_older_ledger_is_no_damage(workspace: Workspace) -> None:
    later = ("evaluation_results", "evaluations", "seals")
    tamper(workspace, *(f"DROP TABLE {name}" for name in later), "UPDATE alembic_version SET version_num = '0002'")
    status, said = verify(workspace)
    assert status == ExitCode.FAILED and "malmen init" in said


class TestQuick:
    def test_it_reads_no_fact_and_no_object(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        read: list[tuple[Path, int | None]] = []

        def noted(path: Path, start: int = 0, length: int | None = None) -> str:
            read.append((path, length))
            return digest_file(path, start, length)

        for module in ("digests", "manifest"):
            monkeypatch.setattr(f"malmen_cli.checkpoint.{module}.digest_file", noted)
        for module in ("verify_files", "registration"):
            monkeypatch.setattr(f"malmen_cli.ledger.{module}.digest_file", noted)
        with Ledger.open(workspace) as ledger:
            statements: list[str] = []
            ledger._connection.set_trace_callback(statements.append)
            assert verify_ledger(ledger, quick=True).problems == []
        asked = " ".join(statements)
        assert "FROM entries" in asked and "FROM parameter_deltas" in asked
        assert not any(f"FROM {table}" in asked for table in ("facts", "fact_rows", "fact_set_members", "fact_sets"))
        assert "integrity_check" not in asked
        headers = {workspace.root.parent / name / "model.safetensors" for name in ("model", "other")}
        assert {path for path, _ in read} == headers
        assert all(length is not None and length < path.stat().st_size for path, length in read)

    def test_what_it_sees(self, workspace: Workspace) -> None:
        model = workspace.root.parent / "model"
        with Ledger.open(workspace) as ledger, ledger.read() as db:
            head = next(iter(store.state(db, store.model_named(db, "tiny").id).values()))
            path = ledger.objects.path(head)
        weights = model / "model.safetensors"
        for file, change in (
            (path, lambda data: None),
            (path, lambda data: data[:-1]),
            (path, lambda data: b""),
            (weights, lambda data: data + b"\0"),
            (weights, lambda data: data[:20] + b"x" + data[21:]),
            (model / "config.json", lambda data: None),
            (workspace.editors / "unused" / "editor.json", lambda data: None),
        ):
            sound = file.read_bytes()
            data = change(sound)
            file.unlink()
            if data is not None:
                file.write_bytes(data)
            status, said = verify(workspace, "--quick")
            assert status == ExitCode.VERIFICATION_FAILED, file
            assert (file.parent.name if "editor" in file.name else file.name[:10]) in said
            file.unlink(missing_ok=True)
            file.write_bytes(sound)
        assert verify(workspace, "--quick")[0] == ExitCode.DONE

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE splits SET facts = 7",
            "UPDATE entries SET status = 'pending' WHERE number = 7",
            "DELETE FROM entries WHERE number = 7",
            "UPDATE parameter_deltas SET after = before",
            "UPDATE models SET name = 'x' WHERE name = 'other'",
            "UPDATE row_packs SET object = 'x'",
            "CREATE INDEX more ON facts (prompt)",
        ],
    )
    def test_what_it_sees_of_the_ledger(self, workspace: Workspace, statement: str) -> None:
        tamper(workspace, statement)
        assert verify(workspace, "--quick")[0] == ExitCode.VERIFICATION_FAILED

    def test_what_it_does_not_see(self, workspace: Workspace) -> None:
        """As its help says; the whole verification does."""
        tamper(workspace, "UPDATE facts SET target = 'no' WHERE prompt = 'a'", "UPDATE entries SET command = 'x'")
        weights = workspace.root.parent / "model" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
        assert verify(workspace, "--quick")[0] == ExitCode.DONE
        status, said = verify(workspace)
        assert status == ExitCode.VERIFICATION_FAILED
        assert "fact " in said and "entry " in said and "embed.weight" in said

    def test_with_many_facts(self, full: bool, figures: Figures) -> None:
        """A figure, not a limit: the machine's load is no failing test."""
        count = 10_000 if full else 1000
        with TemporaryDirectory(dir=FAST) as folder:
            workspace, _ = make_world(Path(folder))
            with Ledger.open(workspace, writing=True) as ledger:
                apply(ledger, *(fact(f"prompt {number}") for number in range(count)))
                times = {}
                for quick in (False, True):
                    best = 1e9
                    for _ in range(3):
                        start = time.perf_counter()
                        assert verify_ledger(ledger, quick=quick).problems == []
                        best = min(best, time.perf_counter() - start)
                    times[quick] = 1000 * best
        figures("R6: milliseconds of a verification", facts=count, verify=times[False], verify_quick=times[True])


class TestAnchors:
    def test_an_anchor_is_printed_and_expected(self, workspace: Workspace) -> None:
        status, printed = verify(workspace, "--anchor", "-q")
        anchor = printed.strip()
        assert status == ExitCode.DONE and anchor == json.loads(verify(workspace, "--json")[1])["anchor"]
        for expected in (anchor, anchor.removeprefix("sha256:"), f"{anchor}\n"):
            assert verify(workspace, "--expect", expected)[0] == ExitCode.DONE
        assert verify(workspace, "--expect", anchor, "--quick", "-m", "tiny")[0] == ExitCode.DONE
        with Ledger.open(workspace, writing=True) as ledger:
            add_split(ledger, "more", workspace.root.parent / "facts.jsonl")
        status, said = verify(workspace, "--expect", anchor)
        assert status == ExitCode.VERIFICATION_FAILED and "the anchor sha256:" in said

    def test_a_head_is_expected_of_its_model(self, workspace: Workspace) -> None:
        with Ledger.open(workspace) as ledger, ledger.read() as db:
            heads = {model.name: store.head(db, model.id).id for model in store.models(db)}
        for name, head in heads.items():
            assert verify(workspace, "--expect", head)[0] == ExitCode.DONE
            assert verify(workspace, "--expect", head, "-m", name)[0] == ExitCode.DONE
        assert verify(workspace, "--expect", heads["tiny"], "-m", "other")[0] == ExitCode.VERIFICATION_FAILED

    def test_what_is_rewritten_as_a_whole_takes_an_anchor(self, workspace: Workspace) -> None:
        """A stranger who knows how seals are made, and one who puts back an earlier ledger that fits the checkpoint."""
        earlier = workspace.database.read_bytes()
        with Ledger.open(workspace, writing=True) as ledger:
            add_split(ledger, "more", workspace.root.parent / "facts.jsonl")
        anchor = json.loads(verify(workspace, "--json")[1])["anchor"]
        with closing(connect(workspace.database, writing=True)) as db:
            db.execute("UPDATE splits SET path = '/elsewhere' WHERE name = 'more'")
            assert verify(workspace)[0] == ExitCode.VERIFICATION_FAILED
            seals.seal_all(db)
        assert verify(workspace)[0] == ExitCode.DONE
        assert verify(workspace, "--expect", anchor)[0] == ExitCode.VERIFICATION_FAILED
        workspace.database.write_bytes(earlier)
        assert verify(workspace)[0] == ExitCode.DONE
        assert verify(workspace, "--expect", anchor)[0] == ExitCode.VERIFICATION_FAILED


def test_writing_on_never_blesses_what_was_tampered_with(workspace: Workspace) -> None:
    """Rows changed, added and removed by a stranger; then the ledger goes on, in those tables and in others."""
    tamper(
        workspace,
        "UPDATE splits SET path = '/elsewhere' WHERE name = 'zsre'",
        "DELETE FROM splits WHERE name = 'held-out'",
        "INSERT INTO settings VALUES ('strange', 'x')",
        "UPDATE editors SET scores = '{}' WHERE id = 'unused'",
    )
    before = verify(workspace)[1].splitlines()[:-1]
    assert len(before) == 4
    with Ledger.open(workspace, writing=True) as ledger:
        add_split(ledger, "more", workspace.root.parent / "facts.jsonl")
        apply(ledger, fact("g"))
        with ledger.write() as db:
            db.execute("INSERT INTO settings VALUES ('other', 'y')")
    assert verify(workspace)[1].splitlines()[:-1] == before


@pytest.mark.parametrize("pragma", ["VACUUM", "ANALYZE", "REINDEX", "PRAGMA journal_mode = DELETE", "PRAGMA optimize"])
def test_what_a_tool_does_to_any_database_is_no_alarm(workspace: Workspace, pragma: str) -> None:
    anchor = json.loads(verify(workspace, "--json")[1])["anchor"]
    with closing(sqlite3.connect(workspace.database, isolation_level=None)) as db:
        db.execute("PRAGMA page_size = 8192")
        db.execute(pragma)
    assert verify(workspace, "--expect", anchor)[0] == ExitCode.DONE
    with Ledger.open(workspace, writing=True) as ledger:
        apply(ledger, fact("h"))
    assert verify(workspace)[0] == verify(workspace, "--quick")[0] == ExitCode.DONE
