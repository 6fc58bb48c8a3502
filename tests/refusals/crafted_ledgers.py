"""Pending entries that nobody was killed over: the newest entry made one, with a tensor's delta changed."""

from __future__ import annotations

from refusal_world import SHARDS, RefusalWorld
from refusals import Prepare
from tiny_models import LAYERS

from malmen_cli.checkpoint.safetensors_file import read_header
from malmen_cli.ledger import ObjectStore, store

EDITED = f"transformer.h.{LAYERS - 1}.mlp.c_proj.weight"


def pending(*, told: bool = True, half: bool = False, **crafted: object) -> Prepare:
    """Make the newest entry one that a killed command left: `half` with the tensor EDITED still as before.

    Args:
        told: change the id with it, as whoever crafts an entry would. crafted: columns of that tensor's delta.
    """

    def prepare(world: RefusalWorld) -> None:
        if half:
            put_back(world)
        with world.database() as db:
            [(entry,)] = db.execute("SELECT id FROM entries WHERE number = 3").fetchall()
            for column, value in crafted.items():
                db.execute(
                    f"UPDATE parameter_deltas SET {column} = ? WHERE entry_id = ? AND tensor = ?",
                    (value(world) if callable(value) else value, entry, EDITED),
                )
            db.execute("UPDATE entries SET status = 'pending' WHERE id = ?", (entry,))
        if told:
            follow(world)

    return prepare


def follow(world: RefusalWorld) -> None:
    """Give the pending entry the id that follows from what it says now."""
    from malmen_cli.ledger.chain import entry_digest

    with world.world().ledger() as (ledger, model), ledger.read() as db:
        entry = store.pending_entry(db, model.id)
        assert entry is not None and entry.editor_id is not None
        digest = entry_digest(
            entry,
            base_digest=model.base_digest,
            editor_record=store.editor(db, entry.editor_id).record_digest,
            deltas=store.deltas_of(db, entry.id),
            packs=store.packs_of(db, entry.id),
        )
    with world.database() as db:
        for table, column in (("entries", "id"), ("parameter_deltas", "entry_id"), ("row_packs", "entry_id")):
            db.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (digest, entry.id))


def put_back(world: RefusalWorld) -> None:
    """The tensor's bytes of before the newest entry, in its file."""
    path = next(world.model / name for name in SHARDS if EDITED in read_header(world.model / name).slots)
    slot = read_header(path).slots[EDITED]
    data = bytearray(path.read_bytes())
    data[slot.start : slot.stop] = objects(world).get(delta(world, "before"))
    path.write_bytes(data)


def objects(world: RefusalWorld) -> ObjectStore:
    return ObjectStore(world.workspace / "objects")


def delta(world: RefusalWorld, column: str) -> str:
    with world.database() as db:
        query = f"SELECT {column} FROM parameter_deltas JOIN entries ON id = entry_id WHERE number = 3 AND tensor = ?"
        return str(db.execute(query, (EDITED,)).fetchone()[0])
