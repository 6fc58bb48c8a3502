from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from ledger_world import EDITOR, apply, dump, fact, make_world, revert, tiny
from safetensors_folders import EDITED

from malmen_cli.errors import UnusableLedger
from malmen_cli.ledger import Ledger, store, verify_ledger
from malmen_cli.ledger.connection import connect


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Register, apply, apply, revert of one fact."""
    workspace, _ = make_world(tmp_path)
    with Ledger.open(workspace, writing=True) as ledger:
        first = apply(ledger, fact("a"), fact("b"))
        apply(ledger, fact("c"))
        revert(ledger, first, fact("a"))
        yield ledger


def problems(ledger: Ledger) -> str:
    return "\n".join(map(str, verify_ledger(ledger).problems))


def tamper(ledger: Ledger, statement: str, *values: object) -> None:
    with closing(connect(ledger.workspace.database, writing=True, foreign_keys=False)) as db:
        assert db.execute(statement, values).rowcount > 0


def test_a_sound_ledger_has_no_problems(ledger: Ledger) -> None:
    before = dump(ledger.workspace)
    verification = verify_ledger(ledger)
    assert verification.problems == []
    counts = {"objects": 18, "facts": 3, "fact sets": 3, "entries": 4}
    assert verification.checked == counts | dict.fromkeys(("databases", "models", "editors", "checkpoints"), 1)
    assert dump(ledger.workspace) == before
    with Ledger.open(ledger.workspace) as reader:
        assert verify_ledger(reader, tiny(reader)).problems == []


OTHER = f"sha256:{'0' * 64}"  # the digest of nothing

TAMPERINGS = {
    "command of an entry": ("UPDATE entries SET command = 'x' WHERE number = 2", "#2 of tiny"),
    "details of an entry": ("UPDATE entries SET details = '{}' WHERE number = 3", "#3 of tiny"),
    "time of an entry": ("UPDATE entries SET created_at = 'x' WHERE number = 1", "#1 of tiny"),
    "details that are not JSON": ("UPDATE entries SET details = '{' WHERE number = 3", "does not hold the JSON"),
    "active digest": ("UPDATE entries SET active_digest = 'x' WHERE number = 4", "#4 of tiny"),
    "kind of an entry": ("UPDATE entries SET kind = 'rebase' WHERE number = 3", "#3 of tiny"),
    "a removed entry": ("DELETE FROM entries WHERE number = 3", "does not follow the entry before it"),
    "a removed first entry": ("DELETE FROM entries WHERE number = 1", "does not register the model"),
    "a renumbered entry": ("UPDATE entries SET number = 9 WHERE number = 4", "#9 of tiny"),
    "a pending entry": ("UPDATE entries SET status = 'pending' WHERE number = 4", "interrupted"),
    "id of an entry": (f"UPDATE entries SET id = '{OTHER}' WHERE number = 4", "its id no longer follows"),
    "target of a revert": ("UPDATE entries SET target = parent WHERE number = 4", "#4 of tiny"),
    "figure of a delta": ("UPDATE parameter_deltas SET norm = 2.0", "#2 of tiny"),
    "after of a delta": ("UPDATE parameter_deltas SET after = before", "does not start where the last entry left it"),
    "a removed delta": ("DELETE FROM parameter_deltas WHERE tensor = 'h.0.mlp.weight'", "#2 of tiny"),
    "target of a fact": ("UPDATE facts SET target = 'no' WHERE prompt = 'a'", "its row was changed"),
    "content of a fact": ("UPDATE facts SET content = replace(content, 'yes', 'no')", "its row was changed"),
    "content that is not a fact": ("UPDATE facts SET content = '[]'", "cannot be read"),
    "edit digest of a fact": ("UPDATE facts SET edit_digest = 'x' WHERE prompt = 'a'", "its row was changed"),
    "a removed fact": ("DELETE FROM facts WHERE prompt = 'a'", "its list of facts was changed"),
    "order of facts": ("UPDATE fact_set_members SET position = position + 5", "its list of facts was changed"),
    "a removed fact of a set": ("DELETE FROM fact_set_members WHERE position = 1", "its list of facts was changed"),
    "rows of a fact": ("UPDATE fact_rows SET count = 7", "#2 of tiny"),
    "object of rows": ("UPDATE row_packs SET object = 'x'", "is missing"),
    "layer of rows": ("UPDATE row_packs SET layer = 'x' WHERE layer = 'h.0.mlp.weight'", "#2 of tiny"),
    "scores of an editor": ("UPDATE editors SET scores = '{}'", "#2 of tiny"),
    "digest of an editor": ("UPDATE editors SET digest = 'x'", "its files were changed"),
    "manifest of a model": ("UPDATE models SET manifest = replace(manifest, 'F32', 'F16')", "its manifest was changed"),
    "damaged manifest": ("UPDATE models SET manifest = '{}'", "manifest is damaged"),
    "base digest": (f"UPDATE models SET base_digest = '{OTHER}'", "its manifest was changed"),
    "architecture": ("UPDATE models SET architecture = '{}'", "its architecture was changed"),
    "a row that points nowhere": ("UPDATE entries SET editor_id = 'x' WHERE number = 4", "points at a missing row"),
}  # fmt: skip


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_edited_rows_are_found_and_located(ledger: Ledger, tampering: str) -> None:
    statement, said = TAMPERINGS[tampering]
    tamper(ledger, statement)
    assert said in problems(ledger)


def test_every_flipped_byte_in_an_object_is_found(ledger: Ledger) -> None:
    for digest in list(ledger.objects):
        path = ledger.objects.path(digest)
        sound = path.read_bytes()
        path.chmod(0o644)
        place = random.Random(digest).randrange(len(sound))
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
        assert path.name[:10] in problems(ledger)
        path.write_bytes(sound)
    assert problems(ledger) == ""


def test_every_missing_object_is_found(ledger: Ledger) -> None:
    for digest in list(ledger.objects):
        path = ledger.objects.path(digest)
        path.rename(path.with_name("away"))
        missing, stranger = problems(ledger).split("\n")
        assert missing == f"object {path.name[:10]}: is missing"
        assert stranger.startswith(f"objects/sha256/{path.parent.name}/away: ")
        path.with_name("away").rename(path)


def test_a_changed_checkpoint_is_located(ledger: Ledger) -> None:
    model = tiny(ledger)
    for name in (*EDITED, "embed.weight"):
        record = model.manifest.tensors[name]
        path = model.path / record.file
        sound = path.read_bytes()
        path.write_bytes(sound[: record.start] + bytes([sound[record.start] ^ 1]) + sound[record.start + 1 :])
        assert f"tensor {name} in {record.file}" in problems(ledger)
        path.write_bytes(sound)
    (model.path / "config.json").unlink()
    assert "config.json is missing" in problems(ledger)


def test_a_lost_checkpoint_and_lost_editor_files(ledger: Ledger) -> None:
    tiny(ledger).path.rename(tiny(ledger).path.with_name("moved"))
    (ledger.workspace.editors / EDITOR / "editor.safetensors").unlink()
    found = problems(ledger)
    assert "it is gone; where it was moved to, malmen models move tiny FOLDER says" in found
    assert f"editor {EDITOR}" in found


def test_damaged_database_pages_are_reported_not_raised(tmp_path: Path) -> None:
    workspace, _ = make_world(tmp_path)
    with closing(connect(workspace.database, writing=True)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    sound, chance = workspace.database.read_bytes(), random.Random(3)
    with Ledger.open(workspace) as ledger:
        for start in range(4096, len(sound), 4096):
            workspace.database.write_bytes(sound[:start] + chance.randbytes(4096) + sound[start + 4096 :])
            with suppress(UnusableLedger), Ledger.open(workspace) as damaged:
                assert verify_ledger(damaged).problems != []
        workspace.database.write_bytes(sound)
        assert problems(ledger) == ""


def test_only_the_named_models_entries_are_read(ledger: Ledger) -> None:
    with ledger.read() as db:
        model = store.only_model(db)
    assert verify_ledger(ledger, model).checked["models"] == 1
