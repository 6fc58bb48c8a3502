"""Rows written as they are captured and read back by chunk: the same bits in any order, and nothing left behind."""

from __future__ import annotations

import gc
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from tiny_models import World, make_facts, make_world
from torch import Tensor

from malmen_cli.checkpoint.durable import TEMPORARY
from malmen_cli.errors import MalmenError, NumericalFailure, VerificationFailed
from malmen_cli.facts import FactSet
from malmen_cli.language_models.texts import Tokens
from malmen_cli.ledger.objects import ObjectStore
from malmen_cli.ledger.records import RowSlice
from malmen_cli.operations import rows
from malmen_cli.operations.active import propose
from malmen_cli.operations.editors import load_editor
from malmen_cli.operations.models import load_base
from malmen_cli.operations.packed_texts import PackedTexts
from malmen_cli.operations.rows import RowReader, capture_rows

FACTS = make_facts(12)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def leftovers(world: World) -> list[Path]:
    gc.collect()
    return list(world.workspace.objects.rglob(f"{TEMPORARY}*"))


def test_rows_read_by_chunk_are_those_that_the_model_and_the_editor_give(world: World) -> None:
    with world.ledger() as (ledger, model):
        record = propose(ledger, model, FactSet(tuple(FACTS), "facts"), None).editor
        editor, layers = load_editor(world.workspace.editors / record.id, model, record)
        language_model = load_base(ledger, model, layers)
        stored = capture_rows(language_model, editor, FACTS, batch_tokens=40, objects=ledger.objects)
        assert len(leftovers(world)) == len(layers)
        apart = capture_rows(language_model, editor, FACTS, batch_tokens=40)
        assert [rows.data.digest for rows in stored] == [rows.data.digest for rows in apart]
        texts = [language_model.tokenizing(fact.prompt, fact.target) for fact in FACTS]
        read = RowReader(ledger.objects, stored)
        order = [7, 2, 11, 0, 3]
        for index, rows in enumerate(stored):
            slices = [RowSlice(rows.data.digest, rows.spans[i].start, rows.spans[i].count) for i in order]
            keys, value_diffs = read.chunk(slices)
            one_by_one = [read(row) for row in slices]
            assert torch.equal(keys, torch.cat([u for u, _ in one_by_one]))
            assert torch.equal(value_diffs, torch.cat([d for _, d in one_by_one]))
            for row, i in zip(one_by_one, order, strict=True):
                [(_, alone)] = list(language_model.capture([texts[i]]))
                with torch.no_grad():
                    wanted = editor.value_diffs(index, alone.keys[index], alone.value_grads[index])
                assert torch.allclose(row[0], alone.keys[index], rtol=1e-4, atol=1e-5)
                assert torch.allclose(row[1], wanted, rtol=1e-3, atol=1e-6)
        del stored, apart, rows, read
    assert not leftovers(world)


def test_an_editor_is_given_as_many_rows_as_there_are_whatever_batches_have(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "BLOCK", 5)
    with world.ledger() as (ledger, model):
        record = propose(ledger, model, FactSet(tuple(FACTS), "facts"), None).editor
        editor, layers = load_editor(world.workspace.editors / record.id, model, record)
        language_model = load_base(ledger, model, layers)
        plain, found, given = editor.rows, [], list[int]()

        def counted(layer: int, u: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
            given.append(len(u))
            return plain(layer, u, g)

        monkeypatch.setattr(editor, "rows", counted)
        for at_once in (1024, 3):
            monkeypatch.setattr(rows, "ROWS_AT_ONCE", at_once)
            packs = capture_rows(language_model, editor, FACTS, batch_tokens=20)
            ends = [packs[0].spans.start(place) for place in (0, 5, 10, len(FACTS))]
            pieces = [min(at_once, b - start) for a, b in pairwise(ends) for start in range(a, b, at_once)]
            assert sorted(given) == sorted(pieces * len(layers))
            given.clear()
            read = RowReader(ledger.objects, packs)
            found.append([read(RowSlice(pack.data.digest, 0, pack.spans.rows)) for pack in packs])
    for (u, d), (u_by_three, d_by_three) in zip(*found, strict=True):
        assert torch.equal(u, u_by_three)
        assert torch.allclose(d, d_by_three, rtol=1e-4, atol=1e-7)


def test_a_row_that_is_not_finite_names_its_fact_among_many(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with world.ledger() as (ledger, model):
        record = propose(ledger, model, FactSet(tuple(FACTS), "facts"), None).editor
        editor, layers = load_editor(world.workspace.editors / record.id, model, record)
        language_model = load_base(ledger, model, layers)
        bad = sum(language_model.tokenizing(fact.prompt, fact.target).supervised for fact in FACTS[:7])
        plain = editor.rows

        def overflowing(layer: int, u: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
            left, right = plain(layer, u, g)
            return left, right.index_fill(0, torch.tensor([bad]), torch.inf)

        monkeypatch.setattr(editor, "rows", overflowing)
        with pytest.raises(NumericalFailure, match="not finite") as caught:
            capture_rows(language_model, editor, FACTS, batch_tokens=40, objects=ledger.objects)
        assert FACTS[7].prompt[:20] in caught.value.message
    assert not leftovers(world)


def test_a_row_that_is_not_finite_leaves_nothing(world: World) -> None:
    with world.ledger() as (ledger, model):
        record = propose(ledger, model, FactSet(tuple(FACTS), "facts"), None).editor
        editor, layers = load_editor(world.workspace.editors / record.id, model, record)
        language_model = load_base(ledger, model, layers)
        text = language_model.tokenizing(FACTS[5].prompt, FACTS[5].target)
        with torch.no_grad():
            editor.raw_step_size[-1] = 1e4  # of which the exponential is infinite
        with pytest.raises(NumericalFailure, match="not finite"):
            capture_rows(language_model, editor, FACTS[5:6], batch_tokens=40, texts=[text], objects=ledger.objects)
    assert not leftovers(world)


def test_rows_without_room_are_refused_before_the_model_is_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(1 << 40, 1 << 40, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with world.ledger() as (ledger, model):
        record = propose(ledger, model, FactSet(tuple(FACTS), "facts"), None).editor
        editor, layers = load_editor(world.workspace.editors / record.id, model, record)
        language_model = load_base(ledger, model, layers)
        monkeypatch.setattr(language_model, "capture", None)  # to call it would be an error of another kind
        rows = sum(language_model.tokenizing(fact.prompt, fact.target).supervised for fact in FACTS)
        sizes = [rows * 4 * (layer.shape.d_in + layer.shape.d_out) + 1 for layer in language_model.layers]
        needed = sum(-(-size // 4096) * 4096 for size in sizes)
        with pytest.raises(
            MalmenError, match=rf"needs {needed / 1e3:,.2f} kB for new rows in .*, and 1\.00 kB are free"
        ):
            capture_rows(language_model, editor, FACTS, batch_tokens=40, objects=ledger.objects)
    assert not leftovers(world)


class TestReading:
    @pytest.mark.parametrize(
        ("start", "count"),
        [(-1, 1), (1 << 40, 1), (200, 1), (0, -1), (0, 2**31 - 1), (0, 10**9), (1, 2**63 - 1), (0, 200)],
    )
    def test_rows_beyond_the_file_are_damage(self, world: World, start: int, count: int) -> None:
        applied = world.apply(*FACTS[:3])
        assert applied.entry is not None
        with world.ledger() as (ledger, _), ledger.read() as db:
            digest = str(db.execute("SELECT object FROM row_packs").fetchone()[0])
            with pytest.raises(VerificationFailed, match="shorter than the ledger says"):
                RowReader(ledger.objects)(RowSlice(digest, start, count))
        world.revert("HEAD")

    def test_the_same_rows_over_and_over_are_damage(self, world: World) -> None:
        """Or a ledger could ask for a thousand times the memory of its files."""
        world.apply(*FACTS[:3])
        with world.ledger() as (ledger, _), ledger.read() as db:
            digest = str(db.execute("SELECT object FROM row_packs").fetchone()[0])
            slices = [RowSlice(digest, 0, 3)] * 1000
            with pytest.raises(VerificationFailed, match="shorter than the ledger says"):
                RowReader(ledger.objects).chunk(slices)
        world.revert("HEAD")

    def test_an_apply_tells_a_count_that_is_a_lie(self, world: World) -> None:
        world.apply(*FACTS[:3])
        with world.ledger() as (ledger, _), ledger.write() as db:
            counts = db.execute("SELECT rowid, count FROM fact_rows").fetchall()
            db.execute("UPDATE fact_rows SET count = 2000000000")
        with pytest.raises(VerificationFailed, match="shorter than the ledger says"):
            world.apply(*FACTS[3:6])
        with world.ledger() as (ledger, _), ledger.write() as db:
            db.executemany("UPDATE fact_rows SET count = ? WHERE rowid = ?", [(c, i) for i, c in counts])
        world.revert("HEAD")

    def test_packs_of_other_dtypes_are_read_together(self, tmp_path: Path) -> None:
        """A model's layers may be kept in several dtypes, and which one rows were stored in has changed."""
        objects = ObjectStore(tmp_path)
        digests, packs = [], []
        for seed, dtype in enumerate((torch.float16, torch.float32, torch.float16, torch.bfloat16)):
            numbers = torch.Generator().manual_seed(seed)
            packs.append((torch.randn(5, 4, generator=numbers).to(dtype), torch.randn(5, 3, generator=numbers)))
            digests.append(objects.put(save({"u": packs[-1][0], "d": packs[-1][1]})))
        wanted = [(1, 0, 2), (0, 3, 2), (2, 0, 0), (3, 1, 3), (0, 0, 1)]
        for some in (wanted, wanted[1:3], [*wanted[1:3], wanted[4]]):
            keys, value_diffs = RowReader(objects).chunk([RowSlice(digests[i], *span) for i, *span in some])
            assert torch.equal(keys, torch.cat([packs[i][0][start : start + count] for i, start, count in some]))
            assert torch.equal(value_diffs, torch.cat([packs[i][1][start : start + count] for i, start, count in some]))
            assert keys.dtype == (torch.float32 if some is wanted else torch.float16)
        narrow = objects.put(save({"u": packs[0][0][:, :3].contiguous(), "d": packs[0][1]}))
        with pytest.raises(VerificationFailed, match="of another width"):
            RowReader(objects).chunk([RowSlice(digests[0], 0, 1), RowSlice(narrow, 0, 1)])

    def test_a_damaged_pack_is_named_once_the_layer_is_closed(self, world: World) -> None:
        world.apply(*FACTS[3:6])
        with world.ledger() as (ledger, _), ledger.read() as db:
            digest = str(db.execute("SELECT object FROM row_packs ORDER BY id DESC").fetchone()[0])
            read = RowReader(ledger.objects)
            read(RowSlice(digest, 0, 1))
            path = ledger.objects.path(digest)
            data = path.read_bytes()
            path.chmod(0o644)
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            read.close_layer()
            with pytest.raises(VerificationFailed, match=path.name):
                read(RowSlice(digest, 0, 1))
            path.write_bytes(data)
            path.chmod(0o444)
        world.revert("HEAD")


@pytest.mark.parametrize("lists", [[], [((1, 2, 3), (4,), ()), ((), (7, 8), (9, 9, 9)), ((5,), (70_000,), (0,))]])
def test_packed_texts_are_the_texts(lists: list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]) -> None:
    texts = [Tokens(*three) for three in lists]
    packed = PackedTexts(texts)
    assert (len(packed), list(packed), packed[:2], packed[::-1]) == (len(texts), texts, texts[:2], texts[::-1])
    assert [text for block in packed.blocks(2) for text in block] == texts
    with pytest.raises(IndexError):
        packed[len(texts)]
