"""Saved plans: a JSON file with the facts and the state that a plan was made for, to be applied later or refused.

A plan may come from a stranger: it is read with a size limit, every field is checked, and it is applied only where the
ledger's head, the base, the editor and the resulting active facts are those it names. No torch.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malmen_cli.checkpoint.digests import is_digest
from malmen_cli.checkpoint.durable import require_writable, write_durably
from malmen_cli.errors import MalmenError, StalePlan, UnknownName, UnsafeFile, UsageError
from malmen_cli.facts import Fact, FactSet, printable
from malmen_cli.ledger import Ledger, ModelRecord, store
from malmen_cli.operations.active import Proposal

FORMAT = 1
LARGEST = 128 << 20  # bytes: some 200,000 facts; a crafted file takes up to 30 times its size in memory
_TEXTS = ("model", "base", "head", "editor", "active_digest", "fact_set")


@dataclass(frozen=True)
class SavedPlan:
    """A plan as it was saved: the facts, and what they were planned for."""

    model: str
    base: str
    head: str
    editor: str
    active_digest: str
    facts: FactSet


def save_plan(path: Path, proposal: Proposal) -> None:
    """Write the plan, replacing a file that is there. Raises UsageError where that cannot be, or for a huge one."""
    facts = proposal.facts
    said = {
        "malmen_plan": FORMAT,
        "model": proposal.model.name,
        "base": proposal.model.base_digest,
        "head": proposal.head.id,
        "editor": proposal.editor.id,
        "active_digest": proposal.active_digest,
        "fact_set": facts.digest,
        "source": printable(facts.source, None),
        "duplicates": facts.duplicates,
        "conflicts_dropped": facts.conflicts_dropped,
        "facts": [json.loads(fact.canonical_json()) for fact in facts],
    }
    data = (json.dumps(said, indent=1) + "\n").encode()
    if len(data) > LARGEST:
        raise UsageError(
            f"a plan of {len(facts):,} facts would take {len(data):,} bytes, more than the {LARGEST:,} that are read",
            remedy="Apply the facts from their file, without a plan, or in parts.",
        )
    refuse_other_files(path)
    write_durably(path, data)


def refuse_other_files(path: Path) -> None:
    """Raises UsageError where there is anything at `path` but a plan that a newer one may replace, or no folder, and
    MalmenError where that cannot be written."""
    if not path.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {path.absolute().parent}", remedy="Make it, or name another file.")
    require_writable(path.absolute().parent)
    if path.exists() or path.is_symlink():
        try:
            if not stat.S_ISREG(path.lstat().st_mode):  # opening a pipe would wait for somebody to write into it
                raise UsageError(f"{path} is not a file")
            read_plan(path)
        except MalmenError:
            raise UsageError(f"{path} is there already and is not a plan", remedy="Name another file.") from None


def read_plan(path: Path) -> SavedPlan:
    """Raises UsageError where the file cannot be read, UnsafeFile where it is not a whole plan of this program."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise UsageError(f"cannot read {path}: {reason}", remedy="Name a plan saved by malmen plan -o.") from None
    try:
        if len(data) > LARGEST:
            raise ValueError("too large")
        return _checked(json.loads(data))
    except (ValueError, TypeError, KeyError, RecursionError, MalmenError) as error:
        why = error.message if isinstance(error, MalmenError) else error
        raise UnsafeFile(f"{path} is not a saved plan: {why}", remedy="Plan again: malmen plan FILE -o PLAN.") from None


def _checked(said: Mapping[str, Any]) -> SavedPlan:
    if not isinstance(said, dict) or said.get("malmen_plan") != FORMAT:
        raise ValueError(f"it does not say 'malmen_plan': {FORMAT}")
    wrong = [name for name in _TEXTS if not isinstance(said.get(name), str) or not said[name].isprintable()]
    if not isinstance(said.get("source"), str) or said["source"] != printable(said["source"], None):
        wrong.append("source")
    counts = ("duplicates", "conflicts_dropped")
    wrong += [name for name in counts if type(said.get(name)) is not int or said[name] < 0]
    wrong += [name for name in ("base", "head", "active_digest", "fact_set") if not is_digest(str(said.get(name)))]
    facts_given = said.get("facts")
    if not isinstance(facts_given, list) or not facts_given or not all(isinstance(fact, dict) for fact in facts_given):
        wrong.append("facts")
    if wrong:
        raise ValueError(f"unusable: {', '.join(dict.fromkeys(wrong))}")
    facts = FactSet(
        tuple(Fact.from_json(fact) for fact in said["facts"]),
        said["source"],
        said["duplicates"],
        said["conflicts_dropped"],
    )
    if facts.digest != said["fact_set"] or len({fact.prompt for fact in facts}) != len(facts):
        raise ValueError("its facts were changed")
    return SavedPlan(said["model"], said["base"], said["head"], said["editor"], said["active_digest"], facts)


def model_of(ledger: Ledger, plan: SavedPlan) -> ModelRecord:
    """The registered model that a plan was made for.

    Raises:
        StalePlan: there is no such model or editor any more, it has another base, or its head has moved on.
    """
    stale = "Plan again: malmen plan FILE -o PLAN, and apply that."
    try:
        with ledger.read() as db:
            model = store.model_named(db, plan.model)
            editor = store.editor(db, plan.editor)
            head = store.head(db, model.id)
    except UnknownName as error:
        raise StalePlan(f"the plan is stale: {error.message}", remedy=stale) from None
    if (model.base_digest, editor.id) != (plan.base, plan.editor):
        raise StalePlan("the plan was made for another base or editor", remedy=stale)
    if head.id != plan.head:
        raise StalePlan(
            f"the plan is stale: entry #{head.number} ({head.kind}) has come since it was made", remedy=stale
        )
    return model
