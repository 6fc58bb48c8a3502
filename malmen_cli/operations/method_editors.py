"""Editors asked for by their method: found in the workspace, or made in memory and kept when an entry is written."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from malmen_cli.checkpoint.digests import digest_bytes
from malmen_cli.checkpoint.lock import PATIENCE
from malmen_cli.config import Dtype, RunSettings
from malmen_cli.editing.editor import LayerShape
from malmen_cli.errors import UsageError
from malmen_cli.facts import Fact
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.ledger import EditorRecord, Ledger, ModelRecord, store, writing
from malmen_cli.methods.registry import Method, method_of
from malmen_cli.methods.settings import UltraEditSettings
from malmen_cli.methods.ultraedit import UltraEdit
from malmen_cli.operations.active import FEW, ActiveSet, Chosen, active_now, few
from malmen_cli.operations.editors import editor_files, new_editor, settings_of
from malmen_cli.operations.environment import environment
from malmen_cli.operations.keeping import chosen_layers, unkept
from malmen_cli.operations.layers import TensorLayer
from malmen_cli.operations.made import Made
from malmen_cli.operations.memory import job_for, needs_for, place_model
from malmen_cli.operations.models import load_base
from malmen_cli.operations.workbench import Progress, silent


@dataclass(frozen=True)
class MethodRequest:
    """An editor that is asked for by its method.

    Attributes:
        settings: None where any will do. text: running text, for a method that takes it; None where any will do.
    """

    method: Method
    settings: RunSettings | None = None
    text: str | None = None

    @cached_property
    def text_digest(self) -> str | None:
        """By which editors that were made from it are told from others; of megabytes, once."""
        return None if self.text is None else digest_bytes(self.text.encode())

    def in_dtype(self, dtype: Dtype | None) -> MethodRequest:
        """The same, for an editor that is made for a model in another dtype than its files'."""
        if dtype is None:
            return self
        settings = self.settings or self.method.settings_class()()
        return replace(self, settings=settings.model_copy(update={"dtype": dtype}))


def editor_by_method(
    ledger: Ledger,
    model: ModelRecord,
    request: MethodRequest,
    facts: Sequence[Fact],
    *,
    beside: bool = False,
    make: bool = True,
    device: str = "cpu",
    batch_tokens: int | None = None,
    progress: Progress = silent,
) -> Chosen:
    """The editor in force if it is of that method, else the model's newest one of it, else one made in memory.

    Args:
        facts: that a new one may be made from. beside: whatever is in force, since nothing is mixed with it.
        make: whether one may be made.

    Raises:
        UsageError: an editor of another method is in force; there is none, and none may be made; or none can be made.
    """
    method = request.method
    if (found := find_by_method(ledger, model, request, beside=beside)) is not None:
        return Chosen(found)
    if method.trained or not make:
        raise UsageError(
            f"{model.name} has no editor of the method {method.name} yet",
            remedy=f"{'Train' if method.trained else 'Make'} one: {method.train_command(model.name)}",
        )
    made = make_editor(ledger, model, request, facts, device=device, batch_tokens=batch_tokens, progress=progress)
    return Chosen(unkept(model, made.files), made)


def find_by_method(
    ledger: Ledger, model: ModelRecord, request: MethodRequest, *, beside: bool = False
) -> EditorRecord | None:
    """As `editor_by_method`, but None where one would have to be made."""
    with ledger.read() as db:
        now = active_now(db, model)
        if now.editor_id is not None and not beside:
            return _in_force(db, model, request, now)
        return _newest(db, model, request)


def _in_force(db: sqlite3.Connection, model: ModelRecord, request: MethodRequest, now: ActiveSet) -> EditorRecord:
    assert now.editor_id is not None
    editor = store.editor(db, now.editor_id)
    if _fits(editor, request):
        return editor
    other = method_of(editor.config).name
    named = request.method.name if other != request.method.name else "the same method with other settings or text"
    # Without these a rebase would take the very editor that is in force.
    asked = "" if request.settings is None else " --method-settings FILE"
    asked += "" if request.text is None else " --text FILE"
    raise UsageError(
        f"{len(now.facts)} active facts were applied by editor {editor.id} ({other}), "
        f"and {named} is never mixed with it",
        remedy=f"Leave out --method, or move all of them first: malmen rebase --method {request.method.name}{asked}",
    )


def _newest(db: sqlite3.Connection, model: ModelRecord, request: MethodRequest) -> EditorRecord | None:
    return next((editor for editor in store.editors(db, model.id) if _fits(editor, request)), None)


def _fits(editor: EditorRecord, request: MethodRequest) -> bool:
    if method_of(editor.config) is not request.method:
        return False
    if request.text is not None and editor.scores.get("text") != request.text_digest:
        return False
    return request.settings is None or settings_of(editor) == request.settings


def make_editor(
    ledger: Ledger,
    model: ModelRecord,
    request: MethodRequest,
    facts: Sequence[Fact],
    *,
    device: str = "cpu",
    batch_tokens: int | None = None,
    progress: Progress = silent,
) -> Made:
    """An editor of a method without training: UltraEdit's normaliser calibrated on these facts, MEMIT's covariance of
    keys from the running text, and so on. Writes nothing.

    Raises:
        UsageError: it cannot be made of these facts, or without text. UnsupportedModel: not for this model.
    """
    method = request.method
    if request.text is not None and not method.takes_text:
        raise UsageError(f"{method.name} makes no use of running text", remedy="Leave out --text.")
    began = time.monotonic()
    settings: Any = request.settings or method.settings_class()()
    layers = _layers(ledger, model, method, settings)
    job = job_for("apply", settings, len(facts), batch_tokens)
    placement = place_model(ledger, model, layers, device, settings, job)
    language_model = load_base(ledger, model, layers, placement, settings, needs_for(model, layers, settings, job))
    editor = new_editor(method, settings, language_model.shapes, placement.device)
    about: dict[str, Any] = {"made": method.name, **environment(placement.device)}
    note, warnings = f"Made an editor of the method {method.name}", []
    if isinstance(editor, UltraEdit):
        count = _calibrate(editor, language_model, facts, settings, batch_tokens, progress)
        about["facts"] = count
        note += f": its normaliser is calibrated on {count:,} fact{'' if count == 1 else 's'}, and frozen"
        if count < FEW:
            warnings.append(few(method.name, count))
    else:
        editor.prepare(language_model, facts, request.text, progress=progress)
        if request.text is not None:
            about["text"] = request.text_digest
    files = editor_files(editor, model, layers, settings, about)
    return Made(files, language_model, note, warnings, time.monotonic() - began)


def _layers(ledger: Ledger, model: ModelRecord, method: Method, settings: Any) -> list[TensorLayer]:
    layers = chosen_layers(ledger, model, settings.layers)
    if settings.layers is not None or method.per_fact:
        return layers
    shapes = [LayerShape(layer.name, layer.d_in, layer.d_out) for layer in layers]
    picked = {shape.name for shape in method.load().pick(settings, shapes)}
    return [layer for layer in layers if layer.name in picked]


def _calibrate(
    editor: UltraEdit,
    model: LanguageModel,
    facts: Sequence[Fact],
    settings: UltraEditSettings,
    batch_tokens: int | None,
    progress: Progress,
) -> int:
    """On some of the facts, whatever order they come in. Returns their number."""
    texts = []
    for fact in sorted(facts, key=lambda fact: fact.edit_digest):  # as good as random, and the same every time
        if (text := model.tokenizing.fits(fact.prompt, fact.target)) is not None:
            texts.append(text)
        if len(texts) == settings.calibration_facts:
            break
    if not texts and facts:
        raise model.tokenizing.nothing_fits(facts[0].prompt, facts[0].target)
    editor.calibrate(model, texts, batch_tokens=batch_tokens, progress=partial(progress, "calibrating"))
    return len(texts)


def make_and_keep(
    ledger: Ledger,
    model: ModelRecord,
    request: MethodRequest,
    facts: Sequence[Fact],
    command: str,
    *,
    device: str = "cpu",
    batch_tokens: int | None = None,
    lock_timeout: float = 0.0,
    progress: Progress = silent,
) -> tuple[EditorRecord, Made]:
    """Make an editor of a method without training and put it into the workspace, before anything is applied.

    Raises:
        UsageError: it cannot be made of these facts, or without text. Locked: another process holds the checkpoint.
    """
    with writing(ledger, model, command, lock_timeout):
        made = make_editor(ledger, model, request, facts, device=device, batch_tokens=batch_tokens, progress=progress)
    with ledger.hold(command, max(lock_timeout, PATIENCE)):
        return made.keep(ledger, model), made
