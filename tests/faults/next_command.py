"""What the next command finds: it settles, looks everything through, and returns what the world is like then.

Two worlds are the same when these are equal: the files of the checkpoint by their digests, and every row of the ledger
but for times and what is hashed over them. Whatever is lost, not sound or left lying about raises.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from ledger_world import tiny
from recorded_commands import COMMANDS, left_behind, require_sound, settled_by_the_next, workspace_in
from safetensors_folders import file_digests

from malmen_cli.checkpoint.digests import is_digest, tag
from malmen_cli.checkpoint.lock import LOCK_NAME
from malmen_cli.ledger import Ledger, Workspace, create_workspace, seals, store, writing
from malmen_cli.ledger.collection import collectable
from malmen_cli.ledger.connection import SCHEMA_REVISION, connect, schema_revision
from malmen_cli.ledger.recovery import recover

State = object

# All that a ledger says, but for what differs from one run of a command to the next: ids that hold the time, and times.
_ROWS = {
    "settings": "SELECT * FROM settings",
    "models": "SELECT id, name, path, base_digest, manifest, architecture FROM models",
    "editors": "SELECT id, model_id, per_fact, config FROM editors",
    "facts": "SELECT * FROM facts",
    "fact_sets": "SELECT * FROM fact_sets",
    "fact_set_members": "SELECT * FROM fact_set_members",
    "entries": """
        SELECT model_id, number, kind, status, fact_set_digest, editor_id, active_digest, source,
        (SELECT number FROM entries AS other WHERE other.id = entries.target),
        (SELECT number FROM entries AS other WHERE other.id = entries.parent) FROM entries
    """,
    "parameter_deltas": """
        SELECT number, tensor, before, after, norm FROM parameter_deltas JOIN entries ON entries.id = entry_id
    """,
    "row_packs": """
        SELECT number, row_packs.editor_id, layer, object FROM row_packs JOIN entries ON entries.id = entry_id
    """,
    "fact_rows": """
        SELECT edit_digest, number, layer, start, count
        FROM fact_rows JOIN row_packs ON row_packs.id = pack_id JOIN entries ON entries.id = entry_id
    """,
    "splits": "SELECT name, path, format, on_conflict, digest, facts FROM splits",
    "dropped_objects": "SELECT digest FROM dropped_objects",
}


def rows(workspace: Workspace) -> dict[str, list[tuple[object, ...]]]:
    with closing(connect(workspace.database, writing=False)) as db:
        return {table: sorted(map(tuple, db.execute(query)), key=repr) for table, query in _ROWS.items()}


def settled(folder: Path) -> State:
    """The next writing command: it settles, everything verifies, nothing is left lying beside the checkpoint."""
    workspace = workspace_in(folder)
    with Ledger.open(workspace, writing=True) as ledger:
        with ledger.read() as db:
            registered = bool(store.models(db))
        if registered:
            with writing(ledger, tiny(ledger), "the next command"):
                pass
        require_sound(ledger)
    files = file_digests(folder / "model")
    left = left_behind(files)
    assert not (left and registered), f"left behind: {left}"
    nobodys = strays(workspace)
    assert not nobodys, f"left behind, and no gc would take it: {nobodys}"
    return {name: files[name] for name in files if name not in left}, rows(workspace)


def restored(folder: Path) -> State:
    """The same command again: every shard is somebody else's or as the head says, and then all are."""
    workspace = workspace_in(folder)
    found = file_digests(folder / "model")
    with Ledger.open(workspace, writing=True) as ledger:
        recovery = recover(ledger, tiny(ledger), "malmen recover --restore", restore=True)
        assert recovery.error is None and not recovery.differences
        require_sound(ledger)
    assert not strays(workspace)
    files = file_digests(folder / "model")
    assert not left_behind(files)
    assert found.keys() - files.keys() <= set(left_behind(found))
    return files, rows(workspace)


def moved(folder: Path) -> State:
    """The next writing command, wherever the model is now. A kill may have left a lock file in the other folder."""
    workspace = settled_by_the_next(folder)
    assert not strays(workspace)
    files = {name: file_digests(folder / name) for name in ("model", "other")}
    return {name: {k: v for k, v in of.items() if k != LOCK_NAME} for name, of in files.items()}, rows(workspace)


def strays(workspace: Workspace) -> list[str]:
    """Files and folders of a workspace that belong to nothing and that `malmen gc` would not take either."""
    with Ledger.open(workspace) as ledger, ledger.read() as db:
        taken = [item.path for item in collectable(ledger, ("leftovers", "training"))]
        editors = [str(row[0]) for row in db.execute("SELECT id FROM editors")]
    known = {"ledger.db", "ledger.db-wal", "ledger.db-shm", LOCK_NAME, "objects", "editors", "training", "checkpoints"}
    found = []
    for path in sorted(workspace.root.rglob("*")):
        name = str(path.relative_to(workspace.root))
        place, _, inside = name.partition("/")
        is_object = place == "objects" and (path.is_dir() or is_digest(tag(path.name)))
        is_editor = place == "editors" and inside.partition("/")[0] in editors
        is_taken = any(path == one or path.is_relative_to(one) for one in taken)
        if not (name in known or is_object or is_editor or is_taken):
            found.append(name)
    return found


def workspace_made(folder: Path) -> State:
    """A whole ledger, or none; either way `malmen init` makes it whole."""
    workspace = workspace_in(folder)
    whole = workspace.database.exists() and schema_revision(workspace, writing=True) == SCHEMA_REVISION
    create_workspace(folder)
    with Ledger.open(workspace) as ledger:
        require_sound(ledger)
    return whole


def upgraded(folder: Path) -> State:
    """Every row of the old ledger, whatever revision it has reached by now; the next opening takes it to the last."""
    workspace = workspace_in(folder)
    last = schema_revision(workspace, writing=True) == SCHEMA_REVISION
    with Ledger.open(workspace, writing=True) as ledger, ledger.read() as db:
        assert list(seals.read(db).broken()) == []
        assert [row[0] for row in db.execute("PRAGMA integrity_check")] == ["ok"]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        entries = sorted(map(tuple, db.execute("SELECT * FROM entries")), key=repr)
    assert entries
    return last, entries, rows(workspace)


def collected(folder: Path) -> State:
    """Whatever was dropped by then: all is sound, the rest can be dropped, and every revert made."""
    return COMMANDS["gc of everything"].inspect(folder)


def data_added(folder: Path) -> State:
    """Where no model is registered, there is nothing to settle."""
    workspace = workspace_in(folder)
    with Ledger.open(workspace, writing=True) as ledger:
        require_sound(ledger)
    return rows(workspace)
