"""Objects in the making: named by what they hold, gone when nothing comes of them; and files of rows in any order."""

from __future__ import annotations

import errno
import gc
import os
import random
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from ledger_world import EDITOR, apply_draft, fact, make_world, tiny
from safetensors import safe_open
from safetensors.numpy import save

from malmen_cli.checkpoint import digests
from malmen_cli.checkpoint.digests import digest_bytes, digest_json
from malmen_cli.checkpoint.durable import TEMPORARY
from malmen_cli.checkpoint.safetensors_file import read_header
from malmen_cli.errors import MalmenError, UsageError, VerificationFailed
from malmen_cli.ledger import Ledger, ObjectStore, RowPack, RowSlice, RowSpan, commit_entry, store, writing
from malmen_cli.ledger.chain import SPANS, entry_digest
from malmen_cli.ledger.row_files import RowFile, RowSpans, RowTable, row_file_size
from malmen_cli.ledger.staged import StagedObject, digest_all

numpy = pytest.importorskip("numpy")


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob(f"{TEMPORARY}*"))


class TestStaged:
    def test_what_was_written_in_pieces_is_got(self, tmp_path: Path) -> None:
        objects = ObjectStore(tmp_path / "objects")
        staged = StagedObject(objects.root)
        staged.write(b"two", 3)
        staged.write(b"one", 0)
        assert leftovers(tmp_path) and staged.size == 6
        [digest] = objects.put_many([staged])
        assert digest == staged.digest == digest_bytes(b"onetwo")
        assert objects.get(digest) == b"onetwo"
        assert stat.S_IMODE(objects.path(digest).stat().st_mode) == 0o444
        assert not leftovers(tmp_path)
        del staged
        gc.collect()
        assert objects.get(digest) == b"onetwo"

    def test_one_that_is_there_already_is_not_put_again(self, tmp_path: Path) -> None:
        objects = ObjectStore(tmp_path)
        path = objects.path(objects.put(b"one"))
        inode = path.stat().st_ino
        staged = StagedObject(objects.root)
        staged.write(b"one", 0)
        assert objects.put_many([staged, b"two"]) == [digest_bytes(b"one"), digest_bytes(b"two")]
        assert path.stat().st_ino == inode
        del staged
        gc.collect()
        assert not leftovers(tmp_path)

    @pytest.mark.parametrize("named", [True, False])
    def test_nothing_is_left_of_one_that_is_dropped(
        self, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        staged = StagedObject(tmp_path / "objects" if named else None)
        staged.write(b"one", 0)
        assert bool(leftovers(tmp_path)) is named
        del staged
        gc.collect()
        assert not leftovers(tmp_path)

    def test_one_without_a_name_is_never_put_in_place(self, tmp_path: Path) -> None:
        staged = StagedObject()
        staged.write(b"one", 0)
        with pytest.raises(VerificationFailed, match="not to be kept"):
            ObjectStore(tmp_path).put_many([staged])

    @pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
    def test_where_no_file_gets_another_name_it_is_renamed(
        self, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "link", refuse)
        objects = ObjectStore(tmp_path / "objects")
        staged = StagedObject(objects.root)
        staged.write(b"one", 0)
        [digest] = objects.put_many([staged])
        assert objects.get(digest) == b"one"
        assert stat.S_IMODE(objects.path(digest).stat().st_mode) == 0o444
        del staged
        gc.collect()
        assert objects.get(digest) == b"one" and not leftovers(tmp_path)

    def test_without_a_temporary_folder_the_remedy_names_tmpdir(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def nowhere() -> str:
            raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

        monkeypatch.setattr("tempfile.gettempdir", nowhere)
        with pytest.raises(MalmenError, match="No usable temporary directory") as caught:
            StagedObject()
        assert "TMPDIR" in str(caught.value.remedy)

    def test_a_fork_removes_nothing(self, tmp_path: Path) -> None:
        staged = StagedObject(tmp_path)
        child = os.fork()
        if not child:
            staged.discard()
            os._exit(0)
        os.waitpid(child, 0)
        assert leftovers(tmp_path)
        staged.discard()
        assert not leftovers(tmp_path)

    def test_a_full_disk_is_told_in_words(self, tmp_path: Path) -> None:
        staged = StagedObject(tmp_path)
        full = os.open("/dev/full", os.O_RDWR)
        os.dup2(full, staged.descriptor)
        os.close(full)
        with pytest.raises(MalmenError, match="No space left"):
            staged.write(b"one", 0)

    @pytest.mark.parametrize("threaded", [0, 1 << 40], ids=["in threads", "in one"])
    def test_digests_of_several_are_those_of_each(
        self, threaded: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(digests, "THREADED", threaded)
        texts = [b"one", b"", b"three" * 500_000, b"four"]
        staged = [StagedObject(tmp_path) for _ in texts]
        for data, text in zip(staged, texts, strict=True):
            data.write(text, 0)
        assert digest_all(staged) == [digest_bytes(text) for text in texts]
        assert ObjectStore(tmp_path).put_many(staged) == [digest_bytes(text) for text in texts]

    def test_an_entry_that_is_refused_leaves_no_rows(self, tmp_path: Path) -> None:
        workspace, _ = make_world(tmp_path)
        with Ledger.open(workspace, writing=True) as ledger:
            with pytest.raises(VerificationFailed), writing(ledger, tiny(ledger), "apply"):
                commit_entry(ledger, replace(apply_draft(ledger, [fact("a")]), active_digest="sha256:" + "0" * 64))
            gc.collect()
            assert not leftovers(workspace.objects)


class TestOpened:
    def test_damage_is_named_and_a_file_that_is_another_one_since_is_hashed_again(self, tmp_path: Path) -> None:
        objects = ObjectStore(tmp_path)
        digest = objects.put(b"one")
        checked: dict[str, tuple[int, int, int]] = {}
        for _ in range(2):
            with objects.opened(digest, checked) as file:
                assert file.read() == b"one"
        path = objects.path(digest)
        path.unlink()
        path.write_bytes(b"ome")
        with pytest.raises(VerificationFailed, match="damaged"), objects.opened(digest, checked):
            pass
        path.unlink()
        with pytest.raises(VerificationFailed, match="cannot be read"), objects.opened(digest):
            pass


@pytest.mark.parametrize(("dtype", "counts"), [("F32", [2, 1, 3]), ("F16", [1]), ("F32", [0, 2]), ("F64", [4, 4])])
def test_a_file_of_rows_is_the_one_that_the_library_writes(dtype: str, counts: list[int], tmp_path: Path) -> None:
    spans = RowSpans([f"edit {i}" for i in range(len(counts))], counts)
    names = {"F16": numpy.float16, "F32": numpy.float32, "F64": numpy.float64}
    random_numbers = numpy.random.default_rng(0)
    u = random_numbers.standard_normal((spans.rows, 5)).astype(names[dtype])
    d = random_numbers.standard_normal((spans.rows, 3)).astype(numpy.float32)
    staged = StagedObject(tmp_path)
    file = RowFile(staged, spans.rows, (dtype, 5), ("F32", 3))
    size = row_file_size(spans.rows, (dtype, 5), ("F32", 3))
    places = list(range(len(counts)))
    random.Random(0).shuffle(places)
    for place in places:
        start, stop = spans.start(place), spans.start(place + 1)
        file.write(start, u[start:stop].tobytes(), d[start:stop].tobytes())
    assert staged.path.read_bytes() == save({"u": u, "d": d})
    assert staged.size == size
    found = bytearray(2 * u[:1].nbytes), bytearray(2 * d[:1].nbytes)
    if spans.rows > 2:
        file.read(1, *map(memoryview, found))
        assert found == (u[1:3].tobytes(), d[1:3].tobytes())
    with pytest.raises(MalmenError, match="shorter than what was written"):
        file.read(spans.rows - 1, *map(memoryview, found))
    read_header(staged.path)
    with safe_open(str(staged.path), framework="numpy") as tensors:
        assert numpy.array_equal(tensors.get_tensor("u"), u)
        assert numpy.array_equal(tensors.get_tensor("d"), d)


class TestTable:
    def test_it_says_where_rows_lie_in_the_order_of_the_edits(self) -> None:
        table = RowTable(["a", "c", "e"])
        assert [edit for edit in "abcdef" if table.lacks(edit)] == ["a", "c", "e"]
        table.note({"e": RowSlice("x", 7, 2), "b": RowSlice("x", 1, 1)})
        table.note_pack("y", RowSpans(["c", "d", "a"], [2, 1, 4]))
        assert not any(map(table.lacks, "abcdef"))
        assert list(table) == table[:] == [RowSlice("y", 3, 4), RowSlice("y", 0, 2), RowSlice("x", 7, 2)]
        assert table[::-1] == table[:][::-1]

    def test_an_edit_without_rows_has_none(self) -> None:
        with pytest.raises(KeyError):
            RowTable(["a"])[0]

    def test_a_strangers_numbers_are_refused(self) -> None:
        with pytest.raises(VerificationFailed, match="beyond any file"):
            RowTable(["a"]).note({"a": RowSlice("x", 1 << 70, 1)})


def test_spans_lie_one_after_another() -> None:
    spans = RowSpans(["a", "b", "c"], [2, 0, 3])
    assert list(spans) == spans[:] == [RowSpan("a", 0, 2), RowSpan("b", 2, 0), RowSpan("c", 2, 3)]
    assert (spans[-1], spans.rows) == (spans[2], 5)
    assert [spans.place_of(row) for row in range(5)] == [0, 0, 2, 2, 2]
    with pytest.raises(IndexError):
        spans[3]


def test_the_digest_of_an_entry_is_that_of_all_it_says_at_once(tmp_path: Path) -> None:
    workspace, _ = make_world(tmp_path)
    many = [f"edit {i * 7919 % 3001}" for i in range(2 * SPANS + 5)]
    packs = [
        RowPack(EDITOR, 'layer "2"', "sha256:2", RowSpans(many, [1] * len(many))),
        RowPack(EDITOR, "layer 1", "sha256:1", [RowSpan("b", 3, 1), RowSpan("a", 0, 3)]),
        RowPack(EDITOR, "layer 0", "sha256:3", []),
    ]
    with Ledger.open(workspace) as ledger, ledger.read() as db:
        entry = store.head(db, tiny(ledger).id)
    for some in ([], packs[:1], packs):
        said = {
            **{"format": 1, "base": "b", "parent": entry.parent, "number": entry.number, "kind": entry.kind},
            **{"fact_set": entry.fact_set_digest, "target": entry.target, "editor": "e"},
            **{"active": entry.active_digest, "source": entry.source, "created_at": entry.created_at},
            **{"command": entry.command, "details": entry.details, "deltas": []},
            "rows": sorted(
                [pack.layer, pack.object, sorted([span.edit_digest, span.start, span.count] for span in pack.spans)]
                for pack in some
            ),
        }
        found = entry_digest(entry, base_digest="b", editor_record="e", deltas=[], packs=some)
        assert found == digest_json(said)


def test_rows_known_at_one_layer_are_refused_at_that_layer(tmp_path: Path) -> None:
    workspace, _ = make_world(tmp_path)
    with Ledger.open(workspace, writing=True) as ledger, writing(ledger, tiny(ledger), "apply"):
        draft = apply_draft(ledger, [fact("a"), fact("b")])
        commit_entry(ledger, draft)
    with Ledger.open(workspace, writing=True) as ledger, writing(ledger, tiny(ledger), "apply"):
        again = replace(apply_draft(ledger, [fact("c"), fact("d")]), new_rows=draft.new_rows)
        with pytest.raises(UsageError, match="2 facts have stored rows"):
            commit_entry(ledger, again)
