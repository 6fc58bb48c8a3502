"""gc drops what it is told to and nothing that is still needed: what can be reverted stays so, to the same bytes."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from ledger_world import EDITOR, apply, dump, fact, make_world, revert, tiny
from safetensors_folders import EDITED, file_digests

from malmen_cli.checkpoint import read_manifest
from malmen_cli.checkpoint.durable import TEMPORARY
from malmen_cli.checkpoint.lock import checkpoint_lock
from malmen_cli.errors import Locked, UsageError
from malmen_cli.ledger import Entry, Ledger, Workspace, add_editor, register_model, store, verify_ledger
from malmen_cli.ledger.collection import SCOPES, Scope, collect, collectable
from malmen_cli.ledger.training_runs import write_note


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Register, apply, apply, revert of one fact."""
    workspace, _ = make_world(tmp_path)
    with Ledger.open(workspace, writing=True) as ledger:
        first = apply(ledger, fact("a"), fact("b"))
        apply(ledger, fact("c"))
        revert(ledger, first, fact("a"))
        yield ledger


def gc(ledger: Ledger, *scopes: Scope) -> list[str]:
    """What was dropped: names, in order."""
    return [item.name for item in collect(ledger, collectable(ledger, scopes), "malmen gc")]


def names(ledger: Ledger, *scopes: Scope) -> list[str]:
    return [item.name for item in collectable(ledger, scopes)]


def problems(ledger: Ledger) -> list[str]:
    return [str(problem) for problem in verify_ledger(ledger).problems]


def entry(ledger: Ledger, name: str) -> Entry:
    with ledger.read() as db:
        return store.resolve_entry(db, name)


class TestStates:
    def test_only_past_states_go(self, ledger: Ledger) -> None:
        model = tiny(ledger)
        with ledger.read() as db:
            past = {digest for number in (2, 3) for digest in store.state(db, model.id, number).values()}
            kept = set(store.state(db, model.id).values()) | set(store.state(db, model.id, 1).values())
        assert set(gc(ledger, "states")) == past
        assert len(past) == 6 and not past & kept
        assert all(ledger.objects.contains(digest) for digest in kept)
        assert problems(ledger) == []
        assert names(ledger, *SCOPES) == []

    def test_nothing_goes_when_there_is_only_the_base(self, tmp_path: Path) -> None:
        workspace, _ = make_world(tmp_path)
        with Ledger.open(workspace, writing=True) as ledger:
            assert names(ledger, *SCOPES) == []

    def test_a_dropped_state_is_not_offered_and_comes_back_when_it_is_made_again(self, ledger: Ledger) -> None:
        model, second = tiny(ledger), entry(ledger, "#3")
        with ledger.read() as db:
            assert store.find_state(db, model.id, second.active_digest) is not None
        gc(ledger, "states")
        with ledger.read() as db:
            assert store.find_state(db, model.id, second.active_digest) is None
        revert(ledger, entry(ledger, "HEAD"))
        with ledger.read() as db:
            state = store.find_state(db, model.id, second.active_digest)
            assert state == store.state(db, model.id, second.number)
            assert store.dropped_objects(db, state.values()) == set()
        assert problems(ledger) == []

    def test_the_base_is_always_offered(self, ledger: Ledger) -> None:
        gc(ledger, "states")
        revert(ledger, entry(ledger, "#3"))
        revert(ledger, entry(ledger, "#2"))
        assert problems(ledger) == []

    def test_killed_between_row_and_file_the_rest_is_dropped_next_time(self, ledger: Ledger) -> None:
        items = collectable(ledger, ["states"])
        with ledger.write() as db:
            db.executemany("INSERT INTO dropped_objects VALUES (?, '')", [(item.name,) for item in items])
        assert problems(ledger) == []
        assert gc(ledger, "states") == [item.name for item in items]
        assert problems(ledger) == []

    def test_an_object_that_is_needed_is_missed_whatever_the_list_says(self, ledger: Ledger) -> None:
        model = tiny(ledger)
        with ledger.read() as db:
            head = next(iter(store.state(db, model.id).values()))
            base = next(iter(store.state(db, model.id, 1).values()))
            rows = db.execute("SELECT object FROM row_packs").fetchone()[0]
        for digest in (head, base):
            with ledger.write() as db:
                db.execute("INSERT INTO dropped_objects VALUES (?, '')", (digest,))
        for digest in (head, base, rows):
            path = ledger.objects.path(digest)
            path.rename(path.with_name(".away"))
            assert problems(ledger) == [f"object {path.name[:10]}: is missing"]
            path.with_name(".away").rename(path)

    def test_another_model_registered_on_a_dropped_state_keeps_it(self, ledger: Ledger, tmp_path: Path) -> None:
        """A copy of the folder of today is a base of its own; its tensors are objects that gc must not drop."""
        copy = tmp_path / "copy"
        shutil.copytree(tiny(ledger).path, copy)
        head = entry(ledger, "HEAD")
        apply(ledger, fact("d"))
        gc(ledger, "states")
        register_model(ledger, "copy", copy, read_manifest(copy), EDITED, {})
        assert names(ledger, "states") == []
        with ledger.read() as db:
            assert store.find_state(db, tiny(ledger).id, head.active_digest) is not None  # it is there again
        assert problems(ledger) == []

    @pytest.mark.parametrize("seed", range(6))
    def test_any_history_goes_on_as_it_would_have_without(self, tmp_path: Path, seed: int) -> None:
        """The same random commands in two worlds, in one of them with gc in between: the same bytes every time."""
        worlds = [make_world(tmp_path / name) for name in ("with", "without")]
        base = file_digests(worlds[0][1])
        chance, applied = random.Random(seed), 0
        for _ in range(10):
            if applied and chance.random() < 0.5:
                number = chance.randrange(2, applied + 2)
                act = lambda ledger, number=number: revert(ledger, entry(ledger, f"#{number}"))  # noqa: E731
            else:
                facts = [fact(f"p{chance.randrange(5)}", f"t{chance.randrange(3)}") for _ in range(2)]
                facts = list({f.prompt: f for f in facts}.values())
                act = lambda ledger, facts=facts: apply(ledger, *facts)  # noqa: E731
            for workspace, _ in worlds:
                with Ledger.open(workspace, writing=True) as ledger:
                    act(ledger)
            applied += 1
            with Ledger.open(worlds[0][0], writing=True) as ledger:
                gc(ledger, "states")
                assert problems(ledger) == []
            assert _weights(worlds[0][1]) == _weights(worlds[1][1])
        for workspace, checkpoint in worlds:
            with Ledger.open(workspace, writing=True) as ledger:
                for number in range(2, applied + 2):
                    if entry(ledger, f"#{number}").kind == "apply":
                        revert(ledger, entry(ledger, f"#{number}"))
                assert problems(ledger) == []
            assert file_digests(checkpoint) == base


def _weights(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in file_digests(folder).items() if not name.startswith(".")}


class TestLeftovers:
    def test_what_killed_commands_leave_goes_and_nothing_else(self, ledger: Ledger) -> None:
        workspace, before = ledger.workspace, dump(ledger.workspace)
        assert names(ledger, "leftovers") == []
        orphan = ledger.objects.put(b"nobody's")
        half = ledger.objects.path(orphan).parent / f"{TEMPORARY}0123"
        half.write_bytes(b"ha")
        (workspace.editors / ".abc.part").mkdir()
        (workspace.editors / ".abc.part" / "editor.json").write_text("{}")
        (workspace.editors / "unrecorded").mkdir()
        workspace.checkpoints.mkdir()
        (workspace.checkpoints / "never-registered").mkdir()
        left = [orphan, str(half.relative_to(workspace.root)), "editors/.abc.part", "editors/unrecorded"]
        left.append("checkpoints/never-registered")
        assert [item.size for item in collectable(ledger, ["leftovers"])] == [8, 2, 2, 0, 0]
        assert gc(ledger, "leftovers") == left
        assert names(ledger, "leftovers") == []
        assert dump(workspace) == before and problems(ledger) == []

    def test_a_link_is_removed_and_what_it_leads_to_is_not(self, ledger: Ledger, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "file").write_text("mine")
        (ledger.workspace.editors / "link").symlink_to(tmp_path / "mine")
        assert gc(ledger, "leftovers") == ["editors/link"]
        assert (tmp_path / "mine" / "file").read_text() == "mine"

    def test_a_pending_entry_keeps_its_objects(self, ledger: Ledger) -> None:
        with ledger.write() as db:
            db.execute("UPDATE entries SET status = 'pending' WHERE number = 4")
        head, pending = (set(_after(ledger, number)) for number in (3, 4))
        assert not (head | pending) & set(names(ledger, *SCOPES))


def _after(ledger: Ledger, number: int) -> list[str]:
    with ledger.read() as db:
        return [delta.after for delta in store.deltas_of(db, store.resolve_entry(db, f"#{number}").id)]


class TestTraining:
    def test_interrupted_runs_go_and_running_ones_stay(self, ledger: Ledger) -> None:
        for name in ("done", "running"):
            (ledger.workspace.training / name).mkdir(parents=True)
            write_note(ledger.workspace.training / name, "tiny", "facts.jsonl", "malmen train")
        with checkpoint_lock(ledger.workspace.training / "running", "malmen train"):
            items = collectable(ledger, ["training"])
            assert [item.name for item in items] == ["training/done"]
            assert items[0].what.startswith("an interrupted training of tiny on facts.jsonl, begun ")
        items = collectable(ledger, ["training"], tiny(ledger))
        assert len(items) == 2
        with checkpoint_lock(ledger.workspace.training / "running", "malmen train"):  # it began after we looked
            assert [item.name for item in collect(ledger, items, "malmen gc")] == ["training/done"]
        assert gc(ledger, "training") == ["training/running"]

    def test_a_run_without_a_sound_note_is_nobodys(self, ledger: Ledger) -> None:
        (ledger.workspace.training / "old").mkdir(parents=True)
        (ledger.workspace.training / "old" / "run.json").write_text("[")
        assert list(collectable(ledger, ["training"], tiny(ledger))) == []
        assert gc(ledger, "training") == ["training/old"]


class TestEditors:
    @pytest.fixture
    def editors(self, ledger: Ledger) -> list[str]:
        for name in ("second", "third"):
            home = ledger.workspace.editors / name
            home.mkdir()
            for file in ("editor.safetensors", "editor.json"):
                (home / file).write_bytes((ledger.workspace.editors / EDITOR / file).read_bytes())
            add_editor(ledger, tiny(ledger), name)
        return ["second", "third"]

    def test_unused_ones_go_but_not_the_newest(self, ledger: Ledger, editors: list[str]) -> None:
        assert gc(ledger, "editors") == ["second"]
        assert sorted(path.name for path in ledger.workspace.editors.iterdir()) == [EDITOR, "third"]
        with ledger.read() as db:
            assert {editor.id for editor in store.editors(db, tiny(ledger).id)} == {EDITOR, "third"}
        assert problems(ledger) == []
        assert names(ledger, "leftovers", "editors") == []

    def test_killed_after_the_row_the_folder_is_a_leftover(self, ledger: Ledger, editors: list[str]) -> None:
        with ledger.write() as db:
            db.execute("DELETE FROM editors WHERE id = 'second'")
        assert problems(ledger) == []
        assert gc(ledger, "leftovers") == ["editors/second"]


class TestWriters:
    def test_gc_refuses_while_a_checkpoint_is_written(self, ledger: Ledger) -> None:
        before = dump(ledger.workspace)
        items = collectable(ledger, SCOPES)
        with checkpoint_lock(tiny(ledger).path, "malmen apply"), pytest.raises(Locked, match="malmen apply"):
            collect(ledger, items, "malmen gc")
        assert dump(ledger.workspace) == before and len(items) == 6

    def test_gc_refuses_while_files_are_put_in_place(self, ledger: Ledger) -> None:
        with Ledger.open(ledger.workspace, writing=True) as other, other.hold("malmen train"):
            with other.hold("malmen models add"):  # nested is nothing new
                pass
            with pytest.raises(Locked, match="malmen train"):
                collect(ledger, collectable(ledger, SCOPES), "malmen gc")

    def test_listing_passes_over_what_a_command_removes_meanwhile(self, ledger: Ledger) -> None:
        """A command that writes keeps temporary files among the objects; a training that ends removes its folder."""
        file, run = ledger.workspace.objects / f"{TEMPORARY}0", ledger.workspace.training / "run"
        done = threading.Event()

        def come_and_go() -> None:
            while not done.is_set():
                file.write_bytes(b"half")
                run.mkdir(parents=True)
                (run / "state").write_bytes(b"half")
                file.unlink()
                shutil.rmtree(run)

        with ThreadPoolExecutor() as threads:
            command = threads.submit(come_and_go)
            try:
                for _ in range(200):
                    assert {item.size for item in collectable(ledger, ["leftovers", "training"])} <= {0, 4}
            finally:
                done.set()
            command.result()

    def test_what_came_into_use_meanwhile_is_kept(self, ledger: Ledger) -> None:
        items = collectable(ledger, ["states"])
        revert(ledger, entry(ledger, "HEAD"))  # back to the state of entry 3
        dropped = {item.name for item in collect(ledger, items, "malmen gc")}
        assert dropped == {item.name for item in items} - set(_after(ledger, 3))
        assert problems(ledger) == []

    def test_a_folder_in_which_nobody_can_write_has_no_writer(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def locked(folder: Path, *options: Any) -> AbstractContextManager[None]:
            if folder == tiny(ledger).path:
                raise UsageError(f"cannot write in {folder}")
            return checkpoint_lock(folder, *options)

        monkeypatch.setattr("malmen_cli.ledger.collection.checkpoint_lock", locked)
        assert len(gc(ledger, "states")) == 6

    def test_a_folder_that_is_gone_has_no_writer(self, ledger: Ledger) -> None:
        tiny(ledger).path.rename(tiny(ledger).path.with_name("moved"))
        assert len(gc(ledger, "states")) == 6


def test_listing_writes_nothing(ledger: Ledger) -> None:
    def files(workspace: Workspace) -> dict[str, str]:
        return {k: v for k, v in file_digests(workspace.root).items() if not k.startswith("ledger.db")}

    before, rows = files(ledger.workspace), dump(ledger.workspace)
    with Ledger.open(ledger.workspace) as reader:
        assert len(collectable(reader, SCOPES)) == 6
    assert files(ledger.workspace) == before and dump(ledger.workspace) == rows
