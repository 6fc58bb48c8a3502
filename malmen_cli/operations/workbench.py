"""The workbench of a solve: the editor, the active facts' rows and, only once it is asked for, the language model."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from malmen_cli.checkpoint.patch import TensorChange
from malmen_cli.facts import Fact, FactSet
from malmen_cli.language_models.footprint import Job
from malmen_cli.language_models.language_model import LanguageModel, attends_plainly
from malmen_cli.language_models.loading import read_config
from malmen_cli.language_models.placement import require_room_for
from malmen_cli.language_models.texts import Tokens
from malmen_cli.language_models.tokenizing import Tokenizing
from malmen_cli.ledger import EditorRecord, FactRef, Ledger, ModelRecord, NewRows, RowSlice, check_editor, store
from malmen_cli.ledger.row_files import RowTable
from malmen_cli.ledger.staged import digest_all
from malmen_cli.methods.per_fact import RowEditor
from malmen_cli.methods.set_method import SetMethod
from malmen_cli.operations.active import edit_digests, require_room_ahead
from malmen_cli.operations.asked_states import AskedStates, states_limit
from malmen_cli.operations.checking import NAMED
from malmen_cli.operations.editors import load_editor, settings_of
from malmen_cli.operations.layers import TensorLayer, all_layers, layers_of
from malmen_cli.operations.memory import job_for, needs_for, place_model, run_dtype
from malmen_cli.operations.models import load_base
from malmen_cli.operations.packed_texts import PackedTexts
from malmen_cli.operations.rows import RowReader, capture_rows
from malmen_cli.operations.solving import Inspector, Solved, solve_active, solved_from_shifts
from malmen_cli.operations.tensors import base_tensor, stored_tensor, to_bytes

if TYPE_CHECKING:
    from malmen_cli.operations.made import Made

LOOKED_UP = 1024
"""Edits whose stored rows the ledger is asked for at a time."""

SAID, SAID_OF_A_FACT = 4096, 400
"""About the bytes of an entry's figures, and of what it says of a fact that is still wrong."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def silent(what: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


class Workbench:
    """Takes a checkpoint from its state to W0 + S(active facts), in memory; nothing here writes.

    As a context manager it removes, at the end, whatever rows were captured and have not been stored by then.

    The language model holds the checkpoint's weights of now; only while rows are captured does it hold the base.

    Args:
        active: the facts to be in force, by prompt. device: as `pick_device` names it, of the model; the editor and
            the solve are where its inputs go.
        batch_tokens: padded tokens per batch of the language model.
        store_rows: whether rows that are captured are to be stored: they are written among the objects then, as
            temporary files, else outside the workspace.
        made: of an editor that is kept nowhere yet.
    """

    def __init__(
        self,
        ledger: Ledger,
        model: ModelRecord,
        record: EditorRecord,
        active: Mapping[str, FactRef],
        *,
        device: str = "cpu",
        batch_tokens: int | None = None,
        store_rows: bool = False,
        progress: Progress = silent,
        made: Made | None = None,
    ) -> None:
        self.ledger, self.model, self.record, self._made = ledger, model, record, made
        self._active, self._noted = active, tuple[Fact, ...]()
        self.settings = settings_of(record)
        job = job_for("apply", self.settings, len(active), batch_tokens)
        self.placement = place_model(ledger, model, layers_of(record.config), device, self.settings, job)
        self.device = torch.device(self.placement.device)
        self.batch_tokens, self.store_rows, self.progress = batch_tokens, store_rows, progress
        files = check_editor(ledger, record) if made is None else made.files
        self.editor: RowEditor | SetMethod
        self.editor, self.layers = load_editor(files, model, record, self.device)
        self.edits = edit_digests(active)
        self._known = {layer.name: RowTable(self.edits) for layer in self.layers}
        with ledger.read() as db:
            self.state = store.state(db, model.id)
            for start in range(0, len(self.edits), LOOKED_UP):
                found = store.rows_of(db, record.id, self.edits[start : start + LOOKED_UP])
                for name, table in self._known.items():
                    table.note(found.get(name, {}))
            edited = [layer for layer in all_layers(db, model) if layer.tensor in self.state]
        # The editor's own layers, and any that another editor has ever edited.
        self._touched = list({layer.tensor: layer for layer in [*self.layers, *edited]}.values())
        self.fresh: list[NewRows] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for rows in self.fresh:
            rows.data.discard()
        self.fresh = []

    @cached_property
    def language_model(self) -> LanguageModel:
        """The model as the checkpoint stands now."""
        model = self._loaded
        self._hold(self.state)
        return model

    @property
    def tokenizing(self) -> Tokenizing:
        """The model's, which is the same whatever its weights: these stay as they are."""
        return self._loaded.tokenizing

    def require_room(self) -> None:
        """Refuse now a language model that would be refused when it is loaded.

        Raises:
            NoRoom: less memory is free than it and the work take.
        """
        folder, dtype = self.model.path, run_dtype(self.settings)
        require_room_for(folder, read_config(folder), self.placement, dtype, self._needs())

    @cached_property
    def _loaded(self) -> LanguageModel:
        self._held: Mapping[str, str] = {}
        if self._made is not None and self._made.language_model is not None:
            return self._made.language_model
        return load_base(self.ledger, self.model, self.layers, self.placement, self.settings, self._needs())

    @cached_property
    def asked(self) -> AskedStates:
        """For asking the same prompts before the solve and after it."""
        stays = not self._to_be_restored()  # any of these layers may lie below this editor's
        return AskedStates(self._loaded, states_limit() if stays else 0, batch_tokens=self.batch_tokens)

    def _to_be_restored(self) -> list[TensorLayer]:
        """Layers that another editor has edited and this one leaves out."""
        own = {layer.tensor for layer in self.layers}
        return [layer for layer in self._touched if layer.tensor not in own and not self._at_base(layer)]

    def _needs(self) -> dict[str, int]:
        return needs_for(self.model, self.layers, self.settings, self.job())

    def job(self) -> Job:
        """What the workbench is for, as its memory is planned."""
        return job_for("apply", self.settings, len(self.edits), self.batch_tokens, self.editor)

    def lacks_rows(self, edit: str) -> bool:
        """Whether an active fact, by its edit digest, has rows that this editor has not captured yet, at any layer.

        No fact has where the editor's method keeps no rows.
        """
        if isinstance(self.editor, SetMethod):
            return False
        return any(table.lacks(edit) for table in self._known.values())

    def capture(
        self,
        facts: Iterable[Fact],
        texts: Sequence[Tokens] | None = None,
        recorded: FactSet | None = None,
        *,
        ask: bool = False,
    ) -> None:
        """Capture at the base weights, into `fresh`, the rows of those facts that have none yet.

        Of a method that keeps no rows, only refuse facts that it cannot edit.

        Args:
            texts: the facts' edit prompts, where they are tokenised already. recorded: the facts that the entry will
                name, where the rows are to be stored. ask: whether the prompts will be asked.

        Raises:
            MalmenError: the rows, and what is to be written with them, would not fit on the disk. NumericalFailure: a
                row that is not finite. UsageError: a fact too long for the model.
        """
        facts = tuple(facts)
        if isinstance(self.editor, SetMethod):
            self._noted = facts
            self.editor.check(self._loaded, facts)
            return
        places = array("i", (place for place, fact in enumerate(facts) if self.lacks_rows(fact.edit_digest)))
        if not places:
            return
        partly = len(places) < len(facts)
        if partly:
            facts = tuple(facts[place] for place in places)
            texts = None if texts is None else PackedTexts(texts[place] for place in places)
        asked = len(facts) if recorded is None else len(recorded)

        def require_room(packs: Sequence[int]) -> None:
            require_room_ahead(
                self.ledger,
                self.model,
                self.record,
                recorded,
                packs=packs,
                rows=len(facts) * len(packs),
                text=SAID + SAID_OF_A_FACT * min(asked, NAMED),
                made=self._made,
            )

        model = self._loaded
        # What a capture leaves is of use where asking the same blocks would have found the very same.
        states = self.asked if ask and not partly and not attends_plainly(model.device, model.dtype) else None
        self._hold({})
        try:
            self.fresh = capture_rows(
                model,
                self.editor,
                facts,
                batch_tokens=self.batch_tokens,
                texts=texts,
                states=states,
                objects=self.ledger.objects if self.store_rows else None,
                require_room=require_room if self.store_rows else None,
                progress=lambda done, total: self.progress("capturing rows", done, total),
            )
        finally:
            self._hold(self.state)
        digests = digest_all([rows.data for rows in self.fresh])
        for rows, digest in zip(self.fresh, digests, strict=True):
            self._known[rows.layer].note_pack(digest, rows.spans)

    def rows(self, layer: str) -> Sequence[RowSlice]:
        """Where the rows of all active facts lie at one layer, in the order of their edit digests."""
        return self._known[layer]

    def solve(self, inspect: Inspector | None = None) -> Solved:
        """W0 + S over all active facts; layers that this editor leaves out and another one edited go back to the base.

        Args:
            inspect: called per layer with what was solved, for `plan`.
        """
        if isinstance(self.editor, SetMethod):
            solved = self._made_anew(self.editor)
        else:
            solved = solve_active(
                self.ledger,
                self.model,
                self.editor,
                self.layers,
                self.rows,
                RowReader(self.ledger.objects, self.fresh),
                self.state,
                self.device,
                inspect=inspect,
            )
        restored = self._to_be_restored()
        weights = {layer.name: base_tensor(self.ledger, self.model, layer.tensor) for layer in restored}
        changes = [self._restoration(layer, weights[layer.name]) for layer in restored]
        return replace(solved, changes=[*solved.changes, *changes], weights={**solved.weights, **weights})

    def _made_anew(self, method: SetMethod) -> Solved:
        """Shifts of all active facts from the base weights, with the language model, which then is as it was."""
        facts = facts_of_active(self.ledger, self._active, self._noted)
        if not facts:
            shifts = [torch.zeros(layer.d_in, layer.d_out) for layer in self.layers]
        else:
            model, held = self._loaded, self._held
            self._hold({})
            try:
                shifts = method.shifts(model, facts, progress=self.progress)
            finally:
                self._hold(held)
        return solved_from_shifts(self.ledger, self.model, self.layers, shifts, self.state, len(facts))

    def _at_base(self, layer: TensorLayer) -> bool:
        base = self.model.manifest.tensors[layer.tensor].digest
        return self.state.get(layer.tensor, base) == base

    def _restoration(self, layer: TensorLayer, base: Tensor) -> TensorChange:
        digest = self.model.manifest.tensors[layer.tensor].digest
        return TensorChange(layer.tensor, self.state[layer.tensor], digest, to_bytes(base))

    def _hold(self, state: Mapping[str, str]) -> None:
        """Put into the model the touched layers' weights in a state (tensor -> digest; else the base)."""
        weights = {}
        for layer in self._touched:
            record = self.model.manifest.tensors[layer.tensor]
            digest = state.get(layer.tensor, record.digest)
            if digest == self._held.get(layer.tensor, record.digest):
                continue
            weights[layer.name] = (
                base_tensor(self.ledger, self.model, layer.tensor)
                if digest == record.digest
                else stored_tensor(self.ledger.objects, record, digest)
            )
        self._loaded.overlay(weights)
        self._held = state


def facts_of_active(ledger: Ledger, active: Mapping[str, FactRef], new: Iterable[Fact] = ()) -> Sequence[Fact]:
    """The active facts in full, in the order of their edit digests.

    Args:
        new: facts that the ledger may not have yet.
    """
    digests = {fact.fact_digest for fact in active.values()}
    found = {fact.digest: fact for fact in new if fact.digest in digests}
    with ledger.read() as db:
        found |= store.facts_with(db, sorted(digests - found.keys()))
    return sorted(found.values(), key=lambda fact: fact.edit_digest)
