"""A workspace, a registered model folder and a stand-in for the mathematics, for tests of the ledger.

The stand-in keeps the one law the ledger relies on: new bytes are a function of the base, the active edits and the
editor, whatever came before. Everything else, from the files to the database, is the real thing.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors_folders import EDITED, safetensors_bytes, write_model_folder

from malmen_cli.checkpoint import TensorChange, digest_bytes, read_manifest
from malmen_cli.facts import Fact, FactSet
from malmen_cli.ledger import (
    Entry,
    EntryDraft,
    EntryFacts,
    FactRef,
    Ledger,
    ModelRecord,
    NewRows,
    ParameterDelta,
    RowSpan,
    Workspace,
    active_digest,
    active_facts,
    add_editor,
    commit_entry,
    create_workspace,
    register_model,
    remaining,
    revert_from_objects,
    store,
    writing,
)
from malmen_cli.ledger.connection import connect
from malmen_cli.ledger.staged import StagedObject

EDITOR = "editor-1"
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None  # a place where syncing costs nothing, if there is one


def fact(prompt: str, target: str = "yes") -> Fact:
    return Fact(prompt=prompt, target=target)


def make_world(folder: Path, *, sharded: bool = False, dtype: str = "F32") -> tuple[Workspace, Path]:
    """A workspace in `folder/.malmen` with the model `tiny` registered from `folder/model`, and one editor."""
    checkpoint = write_model_folder(folder / "model", sharded=sharded, dtype=dtype)
    workspace = _new_workspace(folder)
    with Ledger.open(workspace, writing=True) as ledger:
        registration = register_model(ledger, "tiny", checkpoint, read_manifest(checkpoint), EDITED, {"layers": 3})
        home = workspace.editors / EDITOR
        home.mkdir()
        (home / "editor.safetensors").write_bytes(safetensors_bytes({"ridge": ("F32", (1,), b"\0\0\x80\x3f")}))
        (home / "editor.json").write_text(json.dumps({"rank": 4}))
        add_editor(ledger, registration.model, EDITOR, config={"rank": 4}, scores={"ES": 0.9})
    return workspace, checkpoint


def _new_workspace(folder: Path) -> Workspace:
    """What `create_workspace` makes, without running the migrations again for every test."""
    workspace = Workspace(folder / ".malmen")
    for part in (workspace.root, workspace.objects, workspace.editors):
        part.mkdir()
    workspace.database.write_bytes(_empty_database())
    with Ledger.open(workspace, writing=True) as ledger, ledger.write() as db:
        db.execute("UPDATE settings SET value = ? WHERE key = 'ledger_id'", (secrets.token_hex(16),))
    return workspace


@cache
def _empty_database() -> bytes:
    with TemporaryDirectory() as folder:
        return create_workspace(Path(folder)).database.read_bytes()


def tiny(ledger: Ledger) -> ModelRecord:
    with ledger.read() as db:
        return store.model_named(db, "tiny")


def apply(ledger: Ledger, *facts: Fact) -> Entry:
    """What an operation does for `malmen apply`: rows of new facts, one solve over all active ones, one entry."""
    model = tiny(ledger)
    with writing(ledger, model, "malmen apply"):
        return commit_entry(ledger, apply_draft(ledger, facts))


def apply_draft(ledger: Ledger, facts: Sequence[Fact]) -> EntryDraft:
    model, fact_set = tiny(ledger), FactSet(tuple(facts), source="facts.jsonl")
    with ledger.read() as db:
        active = active_facts([*store.fold(db, model.id), EntryFacts("", "apply", refs(facts))])
        known = store.rows_of(db, EDITOR, [fact.edit_digest for fact in facts])
    changes = _solve(ledger, model, active)
    new_rows = []
    for layer in EDITED:
        new = [fact.edit_digest for fact in facts if fact.edit_digest not in known.get(layer, {})]
        if new:
            rows = ("U8", (len(new), 1), layer[2].encode() * len(new))
            data = safetensors_bytes({"u": rows, "d": rows})
            staged = StagedObject(ledger.objects.root)
            staged.write(data, 0)
            new_rows.append(NewRows(layer, staged, [RowSpan(digest, row, 1) for row, digest in enumerate(new)]))
    return EntryDraft(
        model=model,
        kind="apply",
        active_digest=active_digest(EDITOR, active),
        changes=changes,
        fact_set=fact_set,
        editor_id=EDITOR,
        deltas=[ParameterDelta(c.name, c.before, c.after, norm=1, effective_rank=float("nan")) for c in changes],
        new_rows=new_rows,
        command="malmen apply facts.jsonl",
        details={"torch": "2.6"},
    )


def revert(ledger: Ledger, entry: Entry, *facts: Fact) -> Entry:
    """What an operation does for `malmen revert`: from objects where the state was there before, else solved anew."""
    model = tiny(ledger)
    with writing(ledger, model, "malmen revert"):
        with ledger.read() as db:
            fold = store.fold(db, model.id)
            left = remaining(fold)[entry.id]
            taken = tuple(fact for fact in facts or store.facts_of(db, entry) if fact.digest in left)
            active = active_facts([*fold, EntryFacts("", "revert", refs(taken), entry.id)])
            earlier = store.find_state(db, model.id, active_digest(EDITOR, active))
        if earlier is None:
            changes = _solve(ledger, model, active)
        else:
            changes = revert_from_objects(ledger, model, earlier)
        draft = EntryDraft(
            model=model,
            kind="revert",
            active_digest=active_digest(EDITOR, active),
            changes=changes,
            fact_set=FactSet(taken, source=""),
            target=entry.id,
            editor_id=EDITOR,
            command="malmen revert",
        )
        return commit_entry(ledger, draft)


def refs(facts: Sequence[Fact]) -> tuple[FactRef, ...]:
    return tuple(FactRef(fact.digest, fact.edit_digest, fact.prompt) for fact in facts)


def dump(workspace: Workspace) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table."""
    with closing(connect(workspace.database, writing=False)) as db:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return {table: sorted(map(tuple, db.execute(f"SELECT * FROM {table}")), key=repr) for table in tables}


def _solve(ledger: Ledger, model: ModelRecord, active: dict[str, FactRef]) -> list[TensorChange]:
    with ledger.read() as db:
        state = store.state(db, model.id)
    changes = []
    for name in EDITED:
        base = model.manifest.tensors[name].digest
        data = ledger.objects.get(base)
        edits = sorted(ref.edit_digest for ref in active.values())
        if edits:
            seed = "\n".join([base, EDITOR, *edits]).encode()
            data = hashlib.shake_256(seed).digest(len(data))
        changes.append(TensorChange(name, state.get(name, base), digest_bytes(data), data))
    return changes


def lose(path: Path, how: str) -> None:
    """Have an object of the ledger "removed" or "damaged"."""
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    if how == "removed":
        path.unlink()
