"""R7: one command in eight processes at the same moment. One does the work, the others say so."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from figures import Figures
from fork_server import Server
from ledger_world import make_world
from safetensors_folders import file_digests, names_in
from tiny_models import World, make_fact, save_tiny_model, write_facts
from tiny_models import make_world as make_real_world

from malmen_cli.errors import ExitCode
from malmen_cli.ledger import Ledger, Workspace, create_workspace, store, verify_ledger
from malmen_cli.ledger.connection import REVISIONS, schema_revision

TITLE = "R7: the same command in eight processes at once"
EIGHT = 8
KEPT = Path(__file__).resolve().parents[1] / "ledger"


@pytest.fixture
def counted(figures: Figures) -> Iterator[dict[str, Any]]:
    """A row of the table: what a test puts in, and how long it took. Ask for it last."""
    row: dict[str, Any] = {}
    began = time.monotonic()
    yield row
    figures(TITLE, **row, seconds=time.monotonic() - began)


def ends(found: list[dict[str, Any]]) -> Counter[int]:
    return Counter(run["code"] for run in found)


def figures_of(command: str, found: list[dict[str, Any]], **more: object) -> dict[str, object]:
    codes = ends(found)
    refused = codes[ExitCode.LOCKED]
    other = len(found) - codes[0] - refused
    return {
        "command": command,
        "processes": len(found),
        "done": codes[0],
        "refused_as_locked": refused,
        "refused_otherwise": other,
        **more,
    }


def sound(workspace: Workspace) -> bool:
    with Ledger.open(workspace) as ledger:
        return verify_ledger(ledger).problems == []


class TestWithoutTorch:
    def test_init(self, server: Server, fast_folder: Path, counted: dict[str, Any]) -> None:
        found = server.at_once(fast_folder, *[["init"]] * EIGHT)
        assert ends(found) == {0: EIGHT}, found
        workspace = Workspace(fast_folder / ".malmen")
        with Ledger.open(workspace) as ledger, ledger.read() as db:
            ids = db.execute("SELECT count(*) FROM settings WHERE key = 'ledger_id'").fetchone()[0]
        counted |= figures_of("init", found, made=ids, expected=1)
        assert ids == 1 and sound(workspace)
        assert not [name for name in names_in(workspace.root) if "lock" in name]

    @pytest.mark.parametrize("revision", REVISIONS[:-1])
    def test_upgrade(self, server: Server, fast_folder: Path, revision: str, counted: dict[str, Any]) -> None:
        """By writing commands, which upgrade what they find."""
        workspace = create_workspace(fast_folder)
        workspace.database.unlink()
        with closing(sqlite3.connect(workspace.database)) as db:
            db.executescript((KEPT / f"ledger_{revision}.sql").read_text())
            entries = db.execute("SELECT count(*) FROM entries").fetchone()[0]
        facts = fast_folder / "facts.jsonl"
        facts.write_text('{"prompt": "a", "target": "b"}\n')
        commands = [["data", "add", f"eighth-{number}", "facts.jsonl"] for number in range(EIGHT)]
        found = server.at_once(fast_folder, *commands)
        assert ends(found) == {0: EIGHT}, found
        with Ledger.open(workspace) as ledger, ledger.read() as db:
            assert schema_revision(workspace) == REVISIONS[-1]
            kept = db.execute("SELECT count(*) FROM entries").fetchone()[0]
            splits = db.execute("SELECT count(*) FROM splits WHERE name LIKE 'eighth-%'").fetchone()[0]
        counted |= figures_of(f"upgrade from {revision}", found, made=splits, expected=EIGHT)
        assert (kept, splits) == (entries, EIGHT)

    def test_data_add(self, server: Server, fast_folder: Path, counted: dict[str, Any]) -> None:
        workspace = create_workspace(fast_folder)
        for number in range(EIGHT):
            (fast_folder / f"{number}.jsonl").write_text(f'{{"prompt": "a", "target": "{number}"}}\n')
        found = server.at_once(fast_folder, *[["data", "add", "name", f"{n}.jsonl", "-q"] for n in range(EIGHT)])
        assert ends(found) == {0: 1, ExitCode.USAGE: EIGHT - 1}, found
        assert all("there is a split name already" in run["err"] for run in found if run["code"])
        with Ledger.open(workspace) as ledger, ledger.read() as db:
            splits = [row[0] for row in db.execute("SELECT path FROM splits")]
        counted |= figures_of("data add NAME", found, made=len(splits), expected=1)
        winner = next(number for number, run in enumerate(found) if run["code"] == 0)
        assert splits == [str(fast_folder / f"{winner}.jsonl")] and sound(workspace)

    def test_revert(self, server: Server, fast_folder: Path, counted: dict[str, Any]) -> None:
        """Of one entry by its id: whoever comes later finds it reverted already."""
        import ledger_world

        workspace, checkpoint = make_world(fast_folder / "world")
        base = file_digests(checkpoint)
        with Ledger.open(workspace, writing=True) as ledger:
            entry = ledger_world.apply(ledger, ledger_world.fact("a"))
        found = server.at_once(fast_folder / "world", *[["revert", entry.id, "-q", "--lock-timeout", "60"]] * EIGHT)
        assert ends(found) == {0: 1, ExitCode.USAGE: EIGHT - 1}, found
        assert all("reverted already" in run["err"] for run in found if run["code"])
        with Ledger.open(workspace) as ledger, ledger.read() as db:
            made = len(store.entries(db)) - 2
        counted |= figures_of("revert ID", found, made=made, expected=1)
        assert made == 1 and file_digests(checkpoint) == base and sound(workspace)


class TestWithModels:
    @pytest.fixture
    def world(self, fast_folder: Path) -> World:
        return make_real_world(fast_folder / "world")

    @pytest.mark.parametrize("timeout", ["0", "120"])
    def test_apply(self, torch_server: Server, world: World, timeout: str, counted: dict[str, Any]) -> None:
        """Of one fact file: one entry, and whoever came later finds every fact active."""
        write_facts(world.workspace.root.parent / "facts.jsonl", [make_fact(1), make_fact(2)])
        command = ["apply", "facts.jsonl", "--device", "cpu", "--lock-timeout", timeout, "--json"]
        found = torch_server.at_once(world.workspace.root.parent, *[command] * EIGHT, seconds=180)
        # 3: done, and the check found a tiny model's edit wanting.
        done = [run for run in found if run["code"] in (0, ExitCode.FACTS_FAILED_CHECK)]
        refused = [run for run in found if run["code"] == ExitCode.LOCKED]
        entries = [entry for run in done if (entry := json.loads(run["out"])["entry"])]
        with world.ledger() as (ledger, model), ledger.read() as db:
            made = len(store.entries(db, model.id)) - 1
        row = figures_of(f"apply FILE --lock-timeout {timeout}", refused, made=made, expected=1)
        counted |= row | {"processes": len(found), "done": len(done), "refused_as_locked": len(refused)}
        assert len(done) + len(refused) == EIGHT, found
        assert len(entries) == made == 1
        assert all("process " in run["err"] and ": malmen apply facts.jsonl" in run["err"] for run in refused)
        assert not (refused and timeout != "0")
        assert sound(world.workspace)

    def test_models_add(self, torch_server: Server, fast_folder: Path, counted: dict[str, Any]) -> None:
        workspace = create_workspace(fast_folder)
        save_tiny_model(fast_folder / "model")
        names = ["same"] * 4 + [f"other-{number}" for number in range(4)]
        found = torch_server.at_once(fast_folder, *[["models", "add", name, "model", "-q"] for name in names])
        assert ends(found) == {0: 1, ExitCode.USAGE: EIGHT - 1}, found
        with Ledger.open(workspace) as ledger, ledger.read() as db:
            models = len(store.models(db))
        counted |= figures_of("models add NAME FOLDER", found, made=models, expected=1)
        assert models == 1 and sound(workspace)

    def test_train(self, torch_server: Server, world: World, counted: dict[str, Any]) -> None:
        """With the very same settings: eight editors would be one and the same, and one it is."""
        folder = world.workspace.root.parent
        write_facts(folder / "training.jsonl", [make_fact(number) for number in range(100, 112)])
        command = ["train", "training.jsonl", "--steps", "1", "--rank", "4", "--blocks", "1", "--device", "cpu", "-q"]
        with world.ledger() as (ledger, model), ledger.read() as db:
            before = {editor.id for editor in store.editors(db, model.id)}
        found = torch_server.at_once(folder, *[[*command, "--lock-timeout", "120"]] * EIGHT, seconds=180)
        assert ends(found) == {0: EIGHT}, found
        with world.ledger() as (ledger, model), ledger.read() as db:
            editors = {editor.id for editor in store.editors(db, model.id)} - before
        counted |= figures_of("train FILE, same settings", found, made=len(editors), expected=1)
        assert editors == {run["out"].strip() for run in found} and len(editors) == 1
        assert sound(world.workspace)
        assert not any(world.workspace.training.iterdir())
