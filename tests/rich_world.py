"""A ledger with every kind of row, on the stand-in of ledger_world: what is tampered with, migrated and kept."""

from __future__ import annotations

import shutil
from pathlib import Path

from ledger_world import EDITOR, apply, fact, make_world, revert, tiny
from safetensors_folders import EDITED, write_model_folder

from malmen_cli.checkpoint import read_manifest
from malmen_cli.facts import FactSet
from malmen_cli.ledger import Ledger, Workspace, add_editor, add_split, collect, collectable, register_model
from malmen_cli.ledger.evaluations import keep_evaluation


def rich_world(folder: Path, *, sharded: bool = False) -> Workspace:
    """Every kind of row: two models, an editor that no entry used, applies, a superseded fact, reverts, two splits,
    objects that gc has dropped and one that it has not, evaluations of a file and of an entry."""
    workspace, _ = make_world(folder, sharded=sharded)
    other = write_model_folder(folder / "other", seed=1)
    (folder / "facts.jsonl").write_text('{"prompt": "a", "target": "yes"}\n')
    with Ledger.open(workspace, writing=True) as ledger:
        register_model(ledger, "other", other, read_manifest(other), EDITED, {"layers": 3})
        shutil.copytree(workspace.editors / EDITOR, workspace.editors / "unused")
        add_editor(ledger, tiny(ledger), "unused", per_fact=False, config={"rank": 8}, scores={"ES": None})
        first = apply(ledger, fact("a"), fact("b"), fact("c"))
        apply(ledger, fact("b", "no"), fact("d"))
        revert(ledger, first, fact("a"))
        fourth = apply(ledger, fact("ünïcode\u2028.", "\u0007"))
        last = revert(ledger, fourth)
        revert(ledger, last)
        collect(ledger, collectable(ledger, ["states"]), "malmen gc")
        newest = apply(ledger, fact("e"))
        add_split(ledger, "zsre", folder / "facts.jsonl")
        add_split(ledger, "held-out", folder / "facts.jsonl", on_conflict="first")
        for entry, facts in ((None, [fact("f"), fact("g")]), (newest, [fact("e")])):
            keep_evaluation(
                ledger,
                [{"digest": x.digest, "prompt": x.prompt, "accuracy": 0.5} for x in facts],
                model_id=tiny(ledger).id,
                facts_digest=FactSet(tuple(facts), source="").digest,
                details={"scores": {"ES": 0.5}},
                entry_id=None if entry is None else entry.id,
                editor_id=EDITOR,
                source="facts.jsonl",
                command="malmen eval",
            )
    return workspace
