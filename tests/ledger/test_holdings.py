"""What an entry holds on disk is what lies there: counted against the files themselves."""

from __future__ import annotations

import shutil
from pathlib import Path

from ledger_world import apply, fact, make_world, revert, tiny
from safetensors_folders import EDITED

from malmen_cli.checkpoint import read_manifest
from malmen_cli.ledger import SCOPES, Entry, Holding, Ledger, collect, collectable, holding, register_model, store


def held(ledger: Ledger, entry: Entry) -> Holding:
    with ledger.read() as db:
        return holding(db, ledger.objects, tiny(ledger), entry)


def sizes(ledger: Ledger) -> int:
    return sum(ledger.objects.path(digest).stat().st_size for digest in ledger.objects)


def test_every_entry_holds_what_it_added(tmp_path: Path) -> None:
    workspace, _ = make_world(tmp_path)
    with Ledger.open(workspace, writing=True) as ledger:
        with ledger.read() as db:
            register = store.resolve_entry(db, "#1")
        base = held(ledger, register)
        assert (base.total, base.rows, base.shared, base.dropped) == (sizes(ledger), 0, 0, 0)
        before = sizes(ledger)
        first = apply(ledger, fact("a"), fact("b"))
        added = held(ledger, first)
        assert added.total == sizes(ledger) - before
        assert 0 < added.rows < added.total and added.shared == 0
        before = sizes(ledger)
        second = apply(ledger, fact("c"))
        assert held(ledger, second).total == sizes(ledger) - before


def test_what_a_revert_brings_back_is_shared(tmp_path: Path) -> None:
    workspace, _ = make_world(tmp_path)
    with Ledger.open(workspace, writing=True) as ledger:
        first = apply(ledger, fact("a"))
        second = apply(ledger, fact("b"))
        undone = held(ledger, revert(ledger, second))
        assert undone.shared == undone.tensors == held(ledger, first).shared == held(ledger, first).tensors
        assert undone.rows == 0
        to_base = held(ledger, revert(ledger, first))
        assert to_base.shared == to_base.tensors > 0  # the register entry holds the base


def test_so_is_what_another_model_holds(tmp_path: Path) -> None:
    workspace, checkpoint = make_world(tmp_path)
    shutil.copytree(checkpoint, tmp_path / "twin")
    with Ledger.open(workspace, writing=True) as ledger:
        with ledger.read() as db:
            register = store.resolve_entry(db, "#1")
        assert held(ledger, register).shared == 0
        register_model(ledger, "twin", tmp_path / "twin", read_manifest(tmp_path / "twin"), EDITED, {})
        assert held(ledger, register).shared == held(ledger, register).tensors > 0


def test_what_gc_dropped_is_counted_and_holds_nothing(tmp_path: Path) -> None:
    workspace, _ = make_world(tmp_path)
    with Ledger.open(workspace, writing=True) as ledger:
        first = apply(ledger, fact("a"))
        apply(ledger, fact("b"))
        rows = held(ledger, first).rows
        collect(ledger, collectable(ledger, SCOPES), "malmen gc")
        assert held(ledger, first) == Holding(tensors=0, rows=rows, shared=0, dropped=len(EDITED))
