from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule
from ledger_world import EDITOR, FAST, apply, apply_draft, dump, fact, make_world, refs, revert, tiny
from safetensors_folders import EDITED, file_digests, write_model_folder

from malmen_cli.checkpoint import TensorChange, checkpoint_lock, digest_bytes, patch, read_manifest
from malmen_cli.errors import Locked, MalmenError, UnsafeFile, UsageError, VerificationFailed, WrongBase
from malmen_cli.facts import Fact
from malmen_cli.ledger import (
    NOTHING_ACTIVE,
    Entry,
    EntryFacts,
    Ledger,
    active_facts,
    add_editor,
    check_editor,
    commit_entry,
    ensure_base_objects,
    register_model,
    remaining,
    settle,
    store,
    verify_ledger,
    writing,
)
from malmen_cli.ledger.recovery import recover
from malmen_cli.ledger.sidecar import SIDECAR

A, B, C = fact("a"), fact("b"), fact("c")


@pytest.fixture(params=[False, True], ids=["single", "sharded"])
def ledger(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Ledger]:
    workspace, _ = make_world(tmp_path, sharded=request.param, dtype="BF16")
    with Ledger.open(workspace, writing=True) as ledger:
        yield ledger


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tmp_path / "model"


class TestApplyAndRevert:
    def test_reverting_everything_restores_every_file(self, ledger: Ledger, checkpoint: Path) -> None:
        base = file_digests(checkpoint)
        first, second = apply(ledger, A, B), apply(ledger, C)
        edited = file_digests(checkpoint)
        assert {name for name, digest in edited.items() if base.get(name) != digest} == {
            *tiny(ledger).manifest.weights,
            SIDECAR,
        }
        revert(ledger, first)
        revert(ledger, second)
        assert file_digests(checkpoint) == base

    def test_reverting_the_newest_restores_the_bytes_before_it(self, ledger: Ledger, checkpoint: Path) -> None:
        apply(ledger, A)
        before = file_digests(checkpoint)
        revert(ledger, apply(ledger, B))
        assert file_digests(checkpoint) == before

    def test_reverting_an_older_entry_leaves_what_the_rest_alone_gives(self, ledger: Ledger, checkpoint: Path) -> None:
        first = apply(ledger, A, B)
        apply(ledger, C)
        revert(ledger, first)
        without = file_digests(checkpoint)
        with ledger.read() as db:
            second = store.resolve_entry(db, "HEAD~1")
        revert(ledger, second)
        apply(ledger, C)
        assert file_digests(checkpoint) == without

    def test_superseding_and_reviving(self, ledger: Ledger, checkpoint: Path) -> None:
        apply(ledger, fact("a", "x"))
        old = file_digests(checkpoint)
        newer = apply(ledger, fact("a", "y"))
        assert file_digests(checkpoint) != old
        undo = revert(ledger, newer)
        assert file_digests(checkpoint) == old
        revert(ledger, undo)
        assert file_digests(checkpoint) != old

    def test_rows_are_captured_once(self, ledger: Ledger) -> None:
        entry = apply(ledger, A)
        revert(ledger, entry)
        again = apply(ledger, A)
        with ledger.read() as db:
            assert store.packs_of(db, again.id) == []
            assert len(store.packs_of(db, entry.id)) == len(EDITED)

    def test_the_ledger_stays_sound(self, ledger: Ledger) -> None:
        entry = apply(ledger, A, B)
        revert(ledger, entry, A)
        apply(ledger, C)
        verification = verify_ledger(ledger)
        assert verification.problems == []
        assert verification.checked["entries"] == 4


class TestRefusalsBeforeAnyWrite:
    def refused(
        self, ledger: Ledger, checkpoint: Path, error: type[MalmenError], draft_change: dict[str, object]
    ) -> None:
        before = file_digests(checkpoint), dump(ledger.workspace)
        with writing(ledger, tiny(ledger), "malmen apply"), pytest.raises(error) as caught:
            commit_entry(ledger, replace(apply_draft(ledger, [A]), **draft_change))
        assert caught.value.remedy
        assert (file_digests(checkpoint), dump(ledger.workspace)) == before

    def test_a_change_from_another_state(self, ledger: Ledger, checkpoint: Path) -> None:
        data = bytes(48)
        change = TensorChange(EDITED[0], digest_bytes(b"other"), digest_bytes(data), data)
        self.refused(ledger, checkpoint, WrongBase, {"changes": [change], "deltas": ()})

    def test_bytes_that_are_not_their_digests(self, ledger: Ledger, checkpoint: Path) -> None:
        before = tiny(ledger).manifest.tensors[EDITED[0]].digest
        change = TensorChange(EDITED[0], before, digest_bytes(b"other"), bytes(48))
        self.refused(ledger, checkpoint, VerificationFailed, {"changes": [change], "deltas": ()})

    def test_bytes_of_another_length(self, ledger: Ledger, checkpoint: Path) -> None:
        before = tiny(ledger).manifest.tensors[EDITED[0]].digest
        change = TensorChange(EDITED[0], before, digest_bytes(b"short"), b"short")
        self.refused(ledger, checkpoint, UnsafeFile, {"changes": [change], "deltas": ()})

    def test_a_tensor_whose_base_is_not_stored(self, ledger: Ledger, checkpoint: Path) -> None:
        before = tiny(ledger).manifest.tensors["embed.weight"].digest
        change = TensorChange("embed.weight", before, digest_bytes(bytes(72)), bytes(72))
        self.refused(ledger, checkpoint, VerificationFailed, {"changes": [change], "deltas": ()})
        with checkpoint_lock(checkpoint, "test"):
            ensure_base_objects(ledger, tiny(ledger), ["embed.weight"])
        with writing(ledger, tiny(ledger), "malmen apply"):
            commit_entry(ledger, replace(apply_draft(ledger, [A]), changes=[change], deltas=()))

    def test_an_active_digest_that_is_not_the_folds(self, ledger: Ledger, checkpoint: Path) -> None:
        self.refused(ledger, checkpoint, VerificationFailed, {"active_digest": digest_bytes(b"other")})

    def test_rows_that_are_stored_already(self, ledger: Ledger, checkpoint: Path) -> None:
        draft = apply_draft(ledger, [A])
        revert(ledger, apply(ledger, A))
        self.refused(ledger, checkpoint, UsageError, {"new_rows": draft.new_rows})

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "weights"])
    def test_a_checkpoint_changed_behind_the_ledgers_back(self, ledger: Ledger, checkpoint: Path, name: str) -> None:
        apply(ledger, A)
        path = checkpoint / (next(iter(tiny(ledger).manifest.weights)) if name == "weights" else name)
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
        before = file_digests(checkpoint), dump(ledger.workspace)
        with pytest.raises(WrongBase, match="not as the ledger left it"):
            apply(ledger, B)
        assert (file_digests(checkpoint), dump(ledger.workspace)) == before

    def test_a_checkpoint_that_another_command_writes(self, ledger: Ledger, checkpoint: Path) -> None:
        with checkpoint_lock(checkpoint, "malmen apply other.jsonl"), pytest.raises(Locked, match=r"other\.jsonl"):
            apply(ledger, A)


class TestPendingEntries:
    """Entries as a kill leaves them, made by hand; tests/faults kills for real."""

    def interrupt(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, *facts: Fact) -> None:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr("malmen_cli.ledger.transactions.write_changes", _interrupted)
            apply(ledger, *facts or [A])

    def test_settled_by_the_next_writing_command(
        self, ledger: Ledger, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base, rows = file_digests(checkpoint), dump(ledger.workspace)
        self.interrupt(ledger, monkeypatch)
        assert file_digests(checkpoint).keys() - base.keys() == {SIDECAR}
        with writing(ledger, tiny(ledger), "malmen apply") as settlement:
            assert settlement is not None and settlement.outcome == "withdrawn" and "apply" in str(settlement)
        assert file_digests(checkpoint) == base
        assert dump(ledger.workspace) == rows

    def test_bytes_that_are_neither_old_nor_new_are_not_touched(
        self, ledger: Ledger, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.interrupt(ledger, monkeypatch)
        record = tiny(ledger).manifest.tensors[EDITED[1]]
        with (checkpoint / record.file).open("r+b") as file:
            file.seek(record.start)
            file.write(b"other")
        before = file_digests(checkpoint), dump(ledger.workspace)
        with pytest.raises(WrongBase, match=EDITED[1]), writing(ledger, tiny(ledger), "malmen apply"):
            pass
        assert {**file_digests(checkpoint)} == before[0]
        assert dump(ledger.workspace) == before[1]

    @pytest.mark.parametrize(
        "column, value",
        [("tensor", "../../config.json"), ("before", "sha256:" + "0" * 64), ("after", "sha256:../../x")],
    )
    def test_crafted_ones_are_refused(
        self, ledger: Ledger, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, column: str, value: str
    ) -> None:
        self.interrupt(ledger, monkeypatch)
        with ledger.write() as db:
            db.execute(f"UPDATE parameter_deltas SET {column} = ? WHERE tensor = ?", (value, EDITED[2]))
        before = file_digests(checkpoint)
        with pytest.raises((WrongBase, UnsafeFile)), writing(ledger, tiny(ledger), "malmen apply"):
            pass
        assert file_digests(checkpoint) == before

    def test_shared_facts_outlive_a_withdrawn_entry(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        first = apply(ledger, A)
        rows = dump(ledger.workspace)
        self.interrupt(ledger, monkeypatch, A, B)
        with checkpoint_lock(tiny(ledger).path, "test"):
            settle(ledger, tiny(ledger))
        assert dump(ledger.workspace) == rows
        with ledger.read() as db:
            assert store.facts_of(db, first) == [A]


def test_an_interrupted_entry_whose_new_bytes_are_lost_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, _ = make_world(tmp_path, sharded=True, dtype="BF16")
    with Ledger.open(workspace, writing=True) as ledger:
        apply(ledger, A)
        model = tiny(ledger)
        before, rows = file_digests(model.path), dump(workspace)
        whole, patched_shards = patch.patch_shard, list[Path]()

        def interrupted(path: Path, changes: Any) -> None:
            if patched_shards:
                raise KeyboardInterrupt
            patched_shards.append(path)
            whole(path, changes)

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(patch, "patch_shard", interrupted)
            apply(ledger, B)
        with ledger.read() as db:
            pending = store.pending_entry(db, model.id)
            assert pending is not None
            deltas = store.deltas_of(db, pending.id)
        lost = [d for d in deltas if model.manifest.tensors[d.tensor].file != patched_shards[0].name]
        kept = ledger.objects.get(lost[0].after)
        ledger.objects.path(lost[0].after).unlink()
        assert file_digests(model.path) != before
        half = file_digests(model.path)
        assert isinstance(recover(ledger, model, "malmen recover").error, VerificationFailed)
        assert file_digests(model.path) == half
        found = recover(ledger, model, "malmen recover --restore", restore=True)
        assert found.error is None and found.settlement is not None and found.settlement.outcome == "withdrawn"
        assert file_digests(model.path) == before and dump(workspace) == rows
        ledger.objects.put(kept)
        assert not verify_ledger(ledger).problems


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


class TestRegistration:
    def test_one_folder_has_one_name_and_one_name_one_folder(self, ledger: Ledger, tmp_path: Path) -> None:
        other = write_model_folder(tmp_path / "other", seed=1)
        for name, folder in (("again", tmp_path / "model"), ("tiny", other)):
            with pytest.raises(UsageError, match="registered"):
                register_model(ledger, name, folder, read_manifest(folder), EDITED, {})
        (tmp_path / "link").symlink_to(tmp_path / "model")
        with pytest.raises(UsageError, match="registered"):
            register_model(ledger, "again", tmp_path / "link", read_manifest(tmp_path / "model"), EDITED, {})

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "-x", ".x", "ä", "a\n", "x" * 101])
    def test_names_become_folders(self, ledger: Ledger, tmp_path: Path, name: str) -> None:
        other = write_model_folder(tmp_path / "other", seed=1)
        with pytest.raises(UsageError):
            register_model(ledger, name, other, read_manifest(other), EDITED, {})

    def test_a_folder_that_changed_since_it_was_read(self, ledger: Ledger, tmp_path: Path) -> None:
        other = write_model_folder(tmp_path / "other", seed=1)
        manifest = read_manifest(write_model_folder(tmp_path / "another", seed=2))
        with pytest.raises(WrongBase):
            register_model(ledger, "other", other, manifest, EDITED, {})

    def test_another_ledgers_edits_are_warned_of_and_its_sidecar_given_back(
        self, ledger: Ledger, checkpoint: Path, tmp_path: Path
    ) -> None:
        apply(ledger, A)
        theirs = (checkpoint / SIDECAR).read_bytes()
        assert json.loads(theirs)["workspace"] == str(ledger.workspace.root)
        (tmp_path / "second").mkdir()
        workspace, _ = make_world(tmp_path / "second")
        with Ledger.open(workspace, writing=True) as second:
            registration = register_model(second, "edited", checkpoint, read_manifest(checkpoint), EDITED, {})
            assert str(ledger.workspace.root) in str(registration.warning)
            with writing(second, registration.model, "test"):
                change = _zeros(second, registration.model)
                draft = replace(
                    apply_draft(second, [A]), model=registration.model, changes=[change], deltas=(), new_rows=()
                )
                commit_entry(second, draft)
            assert (checkpoint / SIDECAR).read_bytes() != theirs
            with pytest.raises(WrongBase):
                apply(ledger, B)
            with writing(second, registration.model, "test"):
                back = TensorChange(change.name, change.after, change.before, second.objects.get(change.before))
                with second.read() as db:
                    target = store.head(db, registration.model.id)
                commit_entry(second, replace(draft, kind="revert", target=target.id, changes=[back],
                                             active_digest=NOTHING_ACTIVE))  # fmt: skip
        assert (checkpoint / SIDECAR).read_bytes() == theirs
        apply(ledger, B)

    def test_editors_are_known_by_their_files(self, ledger: Ledger) -> None:
        with ledger.read() as db:
            editor = store.editor(db, EDITOR)
        folder = check_editor(ledger, editor)
        with pytest.raises(UsageError, match="already"):
            add_editor(ledger, tiny(ledger), EDITOR)
        (folder / "editor.json").write_text("{}")
        with pytest.raises(WrongBase):
            check_editor(ledger, editor)
        (folder / "editor.json").unlink()
        with pytest.raises(UsageError):
            check_editor(ledger, editor)
        with pytest.raises(UsageError):
            add_editor(ledger, tiny(ledger), "../editor-1")


def _zeros(ledger: Ledger, model: object) -> TensorChange:
    record = model.manifest.tensors[EDITED[0]]  # type: ignore[attr-defined]
    data = bytes(record.stop - record.start)
    return TensorChange(EDITED[0], record.digest, digest_bytes(data), data)


class LedgerMachine(RuleBasedStateMachine):
    """Any sequence of applies, reverts, partial reverts and reverts of reverts, on real files.

    After each, the checkpoint holds what a fresh ledger with only the active facts would hold, and no active facts
    means the base's own bytes.
    """

    entries = Bundle("entries")

    def __init__(self) -> None:
        super().__init__()
        self.folder = TemporaryDirectory(dir=FAST)
        workspace, self.checkpoint = make_world(Path(self.folder.name), sharded=True)
        self.ledger = Ledger.open(workspace, writing=True)
        self.base = file_digests(self.checkpoint)
        self.by_active: dict[frozenset[str], dict[str, str]] = {frozenset(): self.base}

    def teardown(self) -> None:
        problems = verify_ledger(self.ledger).problems
        self.ledger.close()
        self.folder.cleanup()
        assert problems == []

    @rule(target=entries, facts=st.lists(st.builds(fact, st.sampled_from("abc"), st.sampled_from("xy")), min_size=1,
                                         max_size=3, unique_by=lambda fact: fact.prompt))  # fmt: skip
    def apply(self, facts: list[Fact]) -> Entry:
        return apply(self.ledger, *facts)

    @rule(target=entries, entry=entries, data=st.data())
    def revert(self, entry: Entry, data: st.DataObject) -> object:
        with self.ledger.read() as db:
            left = remaining(store.fold(db, entry.model_id))[entry.id]
            facts = [fact for fact in store.facts_of(db, entry) if fact.digest in left]
        if not facts:
            return multiple()
        return revert(self.ledger, entry, *data.draw(st.lists(st.sampled_from(facts), unique_by=id)))

    @invariant()
    def files_are_a_function_of_the_active_facts(self) -> None:
        with self.ledger.read() as db:
            active = active_facts(store.fold(db, 1))
        files = file_digests(self.checkpoint)
        files.pop(SIDECAR, None)
        edits = frozenset(ref.edit_digest for ref in active.values())
        assert self.by_active.setdefault(edits, files) == files
        assert (self.checkpoint / SIDECAR).exists() == bool(active)


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=12, stateful_step_count=8, deadline=None)


def test_a_draft_is_folded_as_it_will_be(ledger: Ledger) -> None:
    draft = apply_draft(ledger, [A, B])
    assert draft.fact_set is not None
    assert active_facts([EntryFacts("", "apply", refs(draft.fact_set.facts))]).keys() == {"a", "b"}


def test_a_clock_that_goes_back_changes_no_order(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    apply(ledger, A)
    for module in ("transactions", "entry_rows", "registration"):
        monkeypatch.setattr(f"malmen_cli.ledger.{module}.now", lambda: "2001-01-01T00:00:00+00:00", raising=False)
    newest = apply(ledger, B)
    assert newest.created_at < "2002"
    with ledger.read() as db:
        assert [entry.number for entry in store.entries(db)] == [3, 2, 1]
        assert store.entries(db, limit=1) == [newest]
