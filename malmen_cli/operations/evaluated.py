"""What an evaluation takes and gives: plain values, and the JSON they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from malmen_cli.config import Dtype
from malmen_cli.evaluation.drift import Drift
from malmen_cli.evaluation.overlap import Overlap
from malmen_cli.evaluation.report import Report
from malmen_cli.facts import Fact
from malmen_cli.ledger import Entry, ModelRecord
from malmen_cli.operations.method_editors import MethodRequest
from malmen_cli.operations.workbench import Progress, silent

OverlapOption = Literal["leave-out", "keep"]


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate.

    Attributes:
        editor: id or prefix, of a file's evaluation; None for the one in force, else the newest. method: an editor by
            its method instead.
        n_edits: facts chosen by `seed`; None for all, of a file at most as many as the editor was trained for at once.
        dtype: of the language model; None for the editor's.
        batch_tokens: padded tokens per batch of the model. generate: let the model answer freely too.
        max_new_tokens: cap of those answers, in tokens; None for the target's own and 16 more.
        check_old: of an entry's evaluation, most other active facts that are asked.
        overlap: of a file, what becomes of facts that the editor was trained on.
        drift: running text, with its name, whose perplexity is measured.
    """

    editor: str | None = None
    method: MethodRequest | None = None
    n_edits: int | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: Dtype | None = None
    batch_tokens: int | None = None
    generate: bool = True
    max_new_tokens: int | None = None
    check_old: int = 256
    overlap: OverlapOption = "leave-out"
    drift: tuple[str, str] | None = None
    progress: Progress = silent


@dataclass(frozen=True, slots=True)
class NotInEffect:
    """A fact of the evaluated entry, by its number there, that the checkpoint no longer holds, and why."""

    number: int
    fact: Fact
    why: Literal["reverted", "superseded"]

    def as_dict(self) -> dict[str, Any]:
        fact = self.fact
        return {
            "number": self.number,
            "digest": fact.digest,
            "prompt": fact.prompt,
            "target": fact.target,
            "why": self.why,
        }


@dataclass(frozen=True, slots=True)
class OtherFacts:
    """The active facts beside those of the evaluated entry: how many, how many were asked, and their ES."""

    active: int
    asked: int
    before: float | None
    after: float | None

    def as_dict(self) -> dict[str, Any]:
        return {
            "active": self.active,
            "asked": self.asked,
            "before": {"ES": self.before},
            "after": {"ES": self.after},
        }


@dataclass(frozen=True)
class Evaluated:
    """What was evaluated, and how it came out.

    Attributes:
        editor: id. entry: None for a file. source: the file that the facts came from. available: facts in the file or
            in the entry. sampled: whether `seed` chose some of them. numbers: places of the scored facts there, from 1.
        edited: facts whose edits are in the weights that were asked after. lent: facts without unrelated prompts that
            were asked those of other facts. facts_digest: of the fact set of the file or entry.
        overlap: with the editor's training; None where that is not known. drift: None where no text was given.
        method: of the editor. made: in words, what an editor was made from that is kept nowhere; its id is None.
    """

    model: ModelRecord
    editor: str | None
    entry: Entry | None
    source: str | None
    available: int
    sampled: bool
    seed: int
    numbers: list[int]
    edited: int
    report: Report
    not_in_effect: list[NotInEffect]
    others: OtherFacts | None
    warnings: list[str]
    facts_digest: str
    lent: int = 0
    overlap: Overlap | None = None
    drift: Drift | None = None
    method: str | None = None
    made: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Everything but the entry, for `--json`; the schema only ever grows."""
        return {
            "model": self.model.name,
            "base": self.model.base_digest,
            "editor": self.editor,
            "method": self.method,
            "made": self.made,
            "source": self.source,
            "available": self.available,
            "seed": self.seed if self.sampled else None,
            "scored": len(self.numbers),
            "edited": self.edited,
            "not_in_effect": [fact.as_dict() for fact in self.not_in_effect],
            "others": None if self.others is None else self.others.as_dict(),
            "lent": self.lent,
            "warnings": self.warnings,
            "overlap": None if self.overlap is None else self.overlap.as_dict(),
            "drift": None if self.drift is None else self.drift.as_dict(),
            **self.report.as_dict(self.numbers),
        }
