"""R8: a command that does not fit on its disks says so before it writes, with what it needs and what is free."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crafted_ledgers import pending
from other_rights import OWN_MOUNTS, can_mount
from refusal_world import RefusalWorld, run_program
from refusals import Case
from tiny_models import fact_set, make_facts, make_world, write_facts

import malmen_cli
from malmen_cli.checkpoint.durable import TEMPORARY
from malmen_cli.errors import ExitCode, MalmenError
from malmen_cli.facts import read_fact_set
from malmen_cli.ledger.space import database_growth
from malmen_cli.operations.apply import ApplyOptions, apply_facts

COMMANDS = (
    "apply",
    "apply --plan",
    "apply --output",
    "revert HEAD",
    "revert HEAD~1",
    "revert --fact",
    "rebase",
    "train",
    "train --resume",
    "models add",
    "models add, hub",
    "export",
    "export --as delta",
)
TITLE = "R8: too little disk, from no page left to enough, on a real disk"
SAYS = r"too little space on the disk: this needs .*\d (bytes|kB|MB|GB).* in /.*, and 1\.00 kB are free"


def almost_full(path: object) -> Any:
    return shutil._ntuple_diskusage(1 << 40, 1 << 40, 1000)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", [*COMMANDS, "recover"])
def test_said_ahead(command: str, refuse: Callable[[str, Case], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", almost_full)
    prepare = pending(told=False, half=True) if command == "recover" else lambda world: None
    refuse("too little disk, said", Case(command, prepare, (command,), ExitCode.FAILED, SAYS))


def test_what_an_apply_needs_is_named_by_place(
    world: RefusalWorld, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", almost_full)
    assert run_program(world.arguments("apply")) == ExitCode.FAILED
    said = capfd.readouterr().err
    for purpose, folder in (
        ("new tensors and rows", ".malmen/objects"),
        ("the ledger", ".malmen"),
        ("largest", "model"),
    ):
        assert re.search(rf"{purpose}.* in {re.escape(str(world.home / folder))}\b", said), said


def test_an_apply_is_refused_before_it_captures_rows_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All on one disk, of which ever more is free: rows are never written for an entry that is then refused."""
    world = make_world(tmp_path / "world")

    def taken() -> int:
        return sum(path.lstat().st_blocks * 512 for path in (tmp_path / "world").rglob("*") if path.is_file())

    begin, needs = taken(), set()
    usage = shutil._ntuple_diskusage(1 << 40, 1 << 40, 0)  # type: ignore[attr-defined]
    for room in range(320 << 10, 2 << 20, 16 << 10):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, end=begin + room: usage._replace(free=end - taken()))
        done: list[str] = []
        options = ApplyOptions(progress=lambda what, *_, done=done: done.append(what))  # type: ignore[misc]
        with world.ledger() as (ledger, model):
            try:
                apply_facts(ledger, model, fact_set(make_facts(40)), options, "malmen apply")
            except MalmenError as refusal:
                needs.add(re.search(r"this needs ([\d.,]+ \w+)", refusal.message).group(1))  # type: ignore[union-attr]
                assert not done, f"{room} bytes free: {refusal}"
            else:
                assert "capturing rows" in done
                break
    else:
        pytest.fail("it never succeeded")
    assert len(needs) == 2  # without rows, before the model is loaded, and with them


def test_what_killed_commands_have_left_is_named_where_space_is_short(
    world: RefusalWorld, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", almost_full)
    assert run_program(world.arguments("apply")) == ExitCode.FAILED
    assert "gc --leftovers" not in capfd.readouterr().err
    (world.workspace / "objects" / f"{TEMPORARY}0123").write_bytes(b"rows")
    assert run_program(world.arguments("apply")) == ExitCode.FAILED
    assert "malmen gc --leftovers" in capfd.readouterr().err


def test_rows_that_are_not_kept_need_room_among_the_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(tmp_path / "world")
    usage, folder = shutil.disk_usage, tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: almost_full(path) if path == folder else usage(path))
    with world.ledger() as (ledger, model):
        options = ApplyOptions(dry_run=True)
        with pytest.raises(MalmenError, match=f"for a while in {folder}") as refusal:
            apply_facts(ledger, model, fact_set(make_facts(40)), options, "malmen apply")
    assert "TMPDIR" in str(refusal.value.remedy)


@pytest.mark.parametrize(("count", "rephrases"), [(1, 0), (200, 0), (200, 20)])
def test_the_databases_growth_is_foreseen(
    world: RefusalWorld, count: int, rephrases: int, figures: Callable[..., None]
) -> None:
    """Not too little, and not so much that commands are refused which would fit."""
    from dataclasses import replace

    facts = [
        replace(fact, rephrases=tuple(f"Number {i} of what rules {fact.subject}" for i in range(rephrases)))
        for fact in make_facts(count, start=100)
    ]
    facts_in_file = read_fact_set(write_facts(world.home / "facts.jsonl", facts))
    database = world.workspace / "ledger.db"
    before = database.stat().st_size
    run_program(world.arguments("apply"))
    with world.database():
        grown = database.stat().st_size - before
    foreseen = database_growth(facts_in_file, rows=2 * count)
    figures("What the ledger's database grows by", facts=count, rephrases=rephrases, grown=grown, foreseen=foreseen)
    assert grown <= foreseen <= 2.5 * grown + (96 << 10)


@pytest.mark.skipif(not can_mount(), reason="needs the commands unshare and mount, and the right to use them")
@pytest.mark.parametrize("place", [".", "model", ".malmen"])
def test_a_real_disk(world: RefusalWorld, place: str, full: bool, figures: Callable[..., None]) -> None:
    commands = {".": (*COMMANDS, "recover"), "model": ("apply", "revert HEAD", "rebase", "recover")}.get(
        place, ("apply", "revert HEAD~1", "rebase", "train", "models add", "models add, hub", "recover")
    )
    if not full:
        if place != ".":
            pytest.skip("one place is enough in a hurry: --full")
        commands = ("apply", "revert HEAD", "recover")
    script = Path(__file__).with_name("small_disk_refusals.py")
    words = [str(world.home), str(world.saved), world.other_editor, place, "4" if full else "40", *commands]
    paths = [str(Path(malmen_cli.__file__).parents[1]), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_CACHE": str(world.cache)}
    ran = subprocess.run(
        [*OWN_MOUNTS, sys.executable, str(script), *words],
        capture_output=True,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    bad = []
    for found in json.loads(ran.stdout.splitlines()[-1]):
        bad += found.pop("bad")
        on = {".": "both", "model": "the checkpoint"}.get(place, "the workspace")
        figures(TITLE, command=found.pop("command"), on_the_disk=on, **found)
        if not (found["refused_ahead"] or found["not_begun"]):
            bad.append(f"never refused: {found}")
    assert not bad, "\n".join(bad[:20])
