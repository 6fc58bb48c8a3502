"""Evaluations that were kept: what was asked of which edits, the scores, and per fact every answer.

They are no part of the chain: nothing is edited or undone by them. Each names itself by a digest over all it says, and
is sealed like everything else that the chain does not reach.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from malmen_cli.checkpoint.digests import ALGORITHM, canonical_json, digest_json, short
from malmen_cli.errors import UnknownName
from malmen_cli.facts import printable
from malmen_cli.ledger import row_types
from malmen_cli.ledger.connection import insert
from malmen_cli.ledger.database import Ledger
from malmen_cli.ledger.entry_rows import now
from malmen_cli.ledger.verification import Verification


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One run of `malmen eval`.

    Attributes:
        id: a digest over the rest. entry_id: the entry that was scored, None of a fact file. source: the facts' file.
        facts_digest: of the fact set of that file or entry. facts: how many were scored. results_digest: over what is
            kept of each. created_at: ISO 8601, UTC. details: scores, options and versions.
    """

    id: str
    model_id: int
    entry_id: str | None
    editor_id: str | None
    source: str | None
    facts_digest: str
    facts: int
    results_digest: str
    created_at: str
    command: str
    details: dict[str, Any]

    @property
    def short(self) -> str:
        """The short form of the id, which is shown and accepted everywhere."""
        return short(self.id)


def keep_evaluation(
    ledger: Ledger,
    results: Iterable[Mapping[str, Any]],
    *,
    model_id: int,
    facts_digest: str,
    details: Mapping[str, Any],
    entry_id: str | None = None,
    editor_id: str | None = None,
    source: str | None = None,
    command: str = "",
) -> Evaluation:
    """Write an evaluation and its results in one transaction.

    Args:
        results: of each fact a JSON object with its `digest` and whatever else is to be kept, in order.
        details: a JSON object without numbers that are not finite.
    """
    rows = [(str(result["digest"]), canonical_json(result)) for result in results]
    said: dict[str, Any] = {
        "model_id": model_id,
        "entry_id": entry_id,
        "editor_id": editor_id,
        "source": source,
        "facts_digest": facts_digest,
        "facts": len(rows),
        "results_digest": _digest(content for _, content in rows),
        "created_at": now(),
        "command": command,
        "details": dict(details),
    }
    evaluation = Evaluation(id=digest_json(said), **said)
    with ledger.write() as db:
        insert(db, "evaluations", **asdict(evaluation) | {"details": canonical_json(evaluation.details)})
        query = "INSERT INTO evaluation_results (evaluation_id, position, fact_digest, content) VALUES (?, ?, ?, ?)"
        db.executemany(query, ((evaluation.id, place, *row) for place, row in enumerate(rows)))
    return evaluation


def evaluations(db: sqlite3.Connection, model_id: int | None = None) -> list[Evaluation]:
    """Evaluations of one model or of all, newest first."""
    query = "SELECT * FROM evaluations WHERE ? IN (model_id, -1) ORDER BY created_at DESC, id"
    return [_evaluation(row) for row in db.execute(query, (-1 if model_id is None else model_id,))]


def evaluation_named(db: sqlite3.Connection, text: str) -> Evaluation:
    """The evaluation with this id, or the only one whose id begins with these four or more digits.

    Raises UnknownName for none or several.
    """
    prefix = text.strip().lower().removeprefix(f"{ALGORITHM}:")
    rows = []
    if re.fullmatch(r"[0-9a-f]{4,64}", prefix):
        rows = db.execute("SELECT * FROM evaluations WHERE id GLOB ?", (f"{ALGORITHM}:{prefix}*",)).fetchall()
    if not rows:
        raise UnknownName(f"there is no evaluation {printable(text)!r}", remedy="see malmen eval --list")
    if len(rows) > 1:
        raise UnknownName(f"evaluation {text} could be any of {len(rows)}", remedy="give more digits")
    return _evaluation(rows[0])


def results_of(db: sqlite3.Connection, evaluation: Evaluation) -> list[dict[str, Any]]:
    """What was kept of each fact, in order."""
    query = "SELECT content FROM evaluation_results WHERE evaluation_id = ? ORDER BY position"
    return [row_types.json_object(row["content"]) for row in db.execute(query, (evaluation.id,))]


def drop_evaluation(db: sqlite3.Connection, evaluation_id: str) -> None:
    """Forget an evaluation and its results, within the caller's transaction."""
    db.execute("DELETE FROM evaluations WHERE id = ?", (evaluation_id,))


def sizes(db: sqlite3.Connection) -> dict[str, int]:
    """Bytes of text that each evaluation's results take, by id."""
    query = "SELECT evaluation_id, sum(length(CAST(content AS BLOB))) FROM evaluation_results GROUP BY evaluation_id"
    return {str(row[0]): int(row[1]) for row in db.execute(query)}


def verify_evaluations(db: sqlite3.Connection, found: Verification, quick: bool) -> None:
    """Every evaluation against its digest and, unless quickly, its results against theirs; none without its row."""
    known = set()
    for row in db.execute("SELECT * FROM evaluations ORDER BY id").fetchall():
        found.checked["evaluations"] += 1
        known.add(row["id"])
        found.attempt(f"evaluation {_name(row['id'])}", _verify_evaluation, db, row, found, quick)
    for (owner,) in [] if quick else db.execute("SELECT DISTINCT evaluation_id FROM evaluation_results"):
        found.expect(owner in known, f"evaluation {_name(owner)}", "is missing, and its results are there")


def _verify_evaluation(db: sqlite3.Connection, row: sqlite3.Row, found: Verification, quick: bool) -> None:
    evaluation, where = _evaluation(row), f"evaluation {_name(row['id'])}"
    said = asdict(evaluation)
    del said["id"]
    found.expect(digest_json(said) == evaluation.id, where, "its content was changed, its id no longer follows from it")
    if quick:
        return
    query = "SELECT position, fact_digest, content FROM evaluation_results WHERE evaluation_id = ? ORDER BY position"
    results = db.execute(query, (evaluation.id,)).fetchall()
    whole = [result["position"] for result in results] == list(range(evaluation.facts))
    whole = whole and _digest(str(result["content"]) for result in results) == evaluation.results_digest
    named = (row_types.json_object(result["content"])["digest"] == result["fact_digest"] for result in results)
    found.expect(whole and all(named), where, "its results were changed")


def _evaluation(row: sqlite3.Row) -> Evaluation:
    found = row_types.checked(row, row_types.EVALUATION)
    row_types.check_digests(found["id"], found["entry_id"], found["facts_digest"], found["results_digest"])
    row_types.check_names(found["editor_id"])
    return Evaluation(**found | {"details": row_types.json_object(found["details"])})


def _digest(contents: Iterable[str]) -> str:
    hasher = sha256()
    for line in _lines(contents):
        hasher.update(line)
    return f"{ALGORITHM}:{hasher.hexdigest()}"


def _lines(contents: Iterable[str]) -> Iterator[bytes]:
    for content in contents:
        # JSON texts hold no line end, so that no two lists of them make the same lines.
        yield content.encode(errors="surrogateescape") + b"\n"


def _name(digest: object) -> str:
    return short(digest) if isinstance(digest, str) else repr(digest)
