"""Applying a fact set: rows, one solve over all active facts, a check of the edited model, one ledger entry."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from malmen_cli import __version__
from malmen_cli.facts import FactSet
from malmen_cli.ledger import (
    Additions,
    EditorRecord,
    Entry,
    EntryDraft,
    EntryFacts,
    Ledger,
    ModelRecord,
    NewRows,
    RowSlice,
    Settlement,
    active_digest,
    check_editor,
    commit_entry,
    ensure_base_objects,
    store,
    superseded_by,
    writing,
)
from malmen_cli.operations.active import (
    PROPOSED,
    ActiveSet,
    active_now,
    active_with,
    choose_editor,
    edit_digests,
    reference,
)
from malmen_cli.operations.checking import Check, Questions
from malmen_cli.operations.editors import load_editor
from malmen_cli.operations.layers import TensorLayer
from malmen_cli.operations.models import load_base
from malmen_cli.operations.rows import RowReader, capture_rows, slices_of
from malmen_cli.operations.solving import solve_active
from malmen_cli.operations.tensors import stored_tensor


@dataclass(frozen=True)
class Applied:
    """What `apply` did. `entry` is None where nothing was written: a dry run, or every fact active already.

    Attributes:
        additions: the file's facts sorted by what they do to the active ones. active: facts in force afterwards.
    """

    entry: Entry | None
    editor: EditorRecord
    additions: Additions
    active: int
    check: Check | None
    warnings: list[str]
    settlement: Settlement | None


@dataclass(frozen=True)
class ApplyOptions:
    """How to apply: editor id or None for the default, device, padded tokens per batch, how many facts to show.

    Attributes:
        sample: facts whose answers are shown. check_old: most older facts asked again. dry_run: stop before writing.
        lock_timeout: seconds to wait for another process.
    """

    editor: str | None = None
    device: str = "cpu"
    batch_tokens: int = 1024
    sample: int = 5
    check_old: int = 256
    dry_run: bool = False
    lock_timeout: float = 0.0
    progress: Callable[[str, int, int], None] = field(default=lambda what, done, total: None)


def apply_facts(ledger: Ledger, model: ModelRecord, facts: FactSet, options: ApplyOptions, command: str) -> Applied:
    """Add a fact set to the active facts of a model and write the edited checkpoint.

    Raises:
        MalmenError: anything that is wrong, before the checkpoint or the ledger is touched.
    """
    with writing(ledger, model, command, timeout=options.lock_timeout) as settlement:
        with ledger.read() as db:
            now = active_now(db, model)
            record = choose_editor(db, model, options.editor, now)
        additions = superseded_by([reference(fact) for fact in facts], now.facts)
        if not additions.new and not additions.superseding:
            return Applied(None, record, additions, len(now.facts), None, [], settlement)
        run = _Apply(ledger, model, facts, options, now, record)
        rows, fresh = run.rows()
        before = run.questions.scores(), run.questions.answers()
        solved = solve_active(
            model, run.editor, run.layers, rows, RowReader(ledger.objects, fresh), ledger.objects, run.state, run.device
        )
        run.language_model.overlay(solved.weights)
        check = run.questions.check(*before)
        warnings = solved.warnings + run.out_of_range()
        details = {
            "facts": {
                "in_file": len(facts) + facts.duplicates,
                "duplicates": facts.duplicates,
                "new": len(additions.new),
                "already_active": len(additions.already_active),
                "superseded": [old.fact_digest for _, old in additions.superseding],
                "active": len(run.edits),
            },
            "check": check.as_dict(),
            "solve": solved.figures,
            "warnings": warnings,
            **environment(options.device),
        }
        draft = EntryDraft(
            model=model,
            kind="apply",
            active_digest=active_digest(record.id, run.active),
            changes=solved.changes,
            fact_set=facts,
            editor_id=record.id,
            deltas=solved.deltas,
            new_rows=fresh,
            command=command,
            details=details,
        )
        entry = None if options.dry_run else commit_entry(ledger, draft)
        return Applied(entry, record, additions, len(run.edits), check, warnings, settlement)


class _Apply:
    """What one apply works with: the editor, the model, the active facts to be, and the questions to ask.

    The model holds the checkpoint's weights of now; only while `rows` captures does it hold the base.
    """

    def __init__(
        self,
        ledger: Ledger,
        model: ModelRecord,
        facts: FactSet,
        options: ApplyOptions,
        now: ActiveSet,
        record: EditorRecord,
    ) -> None:
        self.options, self.facts, self.record, self.device = options, facts, record, torch.device(options.device)
        self.editor, self.layers = load_editor(check_editor(ledger, record), model, record, self.device)
        ensure_base_objects(ledger, model, [layer.tensor for layer in self.layers])
        with ledger.read() as db:
            self.state = store.state(db, model.id)
            self.active = active_with(db, model, EntryFacts(PROPOSED, "apply", tuple(map(reference, facts))))
            self.edits = edit_digests(self.active)
            self._stored = store.rows_of(db, record.id, self.edits)
            kept = [fact.fact_digest for prompt, fact in now.facts.items() if self.active[prompt] == fact]
            # The digests' order is as good as random, and the same every time.
            old = store.facts_with(db, sorted(kept)[: options.check_old])
        self.language_model = load_base(ledger, model, self.layers, options.device)
        self._base = {layer.name: self.language_model.parameter(layer.name).clone() for layer in self.layers}
        self._now = _weights_now(ledger, model, self.layers, self.state)
        self.language_model.overlay(self._now)
        self.questions = Questions(self.language_model, facts.facts, list(old.values()), options.sample)

    def rows(self) -> tuple[Callable[[str], list[RowSlice]], list[NewRows]]:
        """Where the rows of all active facts lie, by layer and in the order of their digests, and those just captured.

        Facts whose rows this editor has captured before are not captured again.
        """
        stored = self._stored
        missing = [f for f in self.facts if any(f.edit_digest not in stored.get(x.name, {}) for x in self.layers)]
        fresh: list[NewRows] = []
        if missing:
            self.language_model.overlay(self._base)
            fresh = capture_rows(
                self.language_model,
                self.editor,
                missing,
                batch_tokens=self.options.batch_tokens,
                progress=lambda done, total: self.options.progress("capturing rows", done, total),
            )
            self.language_model.overlay(self._now)
        captured = slices_of(fresh)
        known = {x.name: {**stored.get(x.name, {}), **captured.get(x.name, {})} for x in self.layers}
        return lambda layer: [known[layer][edit] for edit in self.edits], fresh

    def out_of_range(self) -> list[str]:
        """A warning where the editor was never trained to edit as many, or as few, facts as are active at once."""
        trained = self.record.config["config"]
        largest = trained["facts_per_step"]
        smallest = 1 if trained["sample_size"] else largest
        if smallest <= len(self.edits) <= largest:
            return []
        return [
            f"{len(self.edits):,} facts are active, and this editor was trained for {smallest:,} to {largest:,} at "
            "once: expect a poorer edit"
        ]


def _weights_now(
    ledger: Ledger, model: ModelRecord, layers: Sequence[TensorLayer], state: Mapping[str, str]
) -> dict[str, torch.Tensor]:
    """The edited layers' weights as the checkpoint holds them now."""
    weights = {}
    for layer in layers:
        record = model.manifest.tensors[layer.tensor]
        weights[layer.name] = stored_tensor(ledger.objects, record, state.get(layer.tensor, record.digest))
    return weights


def environment(device: str) -> dict[str, Any]:
    """What the figures of an entry were made with."""
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": {
            "malmen": __version__,
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
    }
