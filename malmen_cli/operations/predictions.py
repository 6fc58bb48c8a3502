"""Asking a model in two of its states: greedy answers before and after, in memory, nothing written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from malmen_cli.evaluation.results import KINDS, Kind, prompts_of
from malmen_cli.facts import Fact
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.ledger import Ledger, ModelRecord, store
from malmen_cli.operations.diff import StateDiff
from malmen_cli.operations.editors import settings_of
from malmen_cli.operations.layers import all_layers
from malmen_cli.operations.models import load_base, pick_device
from malmen_cli.operations.states import CHECKPOINT, State, TensorBytes, named_state
from malmen_cli.operations.tensors import from_bytes, torch_dtype


@dataclass(frozen=True, slots=True)
class Prediction:
    """One prompt and what the model says to it in either state, greedily, for as many tokens as the target has."""

    kind: Kind
    prompt: str
    target: str
    before: str
    after: str

    @property
    def changed(self) -> bool:
        return self.before != self.after

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "changed": self.changed}


@dataclass(frozen=True, slots=True)
class Asked:
    """Every prompt that was asked, and tensors that the model held as they lie in the folder, in both states."""

    predictions: list[Prediction]
    as_they_lie: list[str]


def compare_predictions(
    ledger: Ledger,
    diff: StateDiff,
    *,
    common: int = 32,
    device: str = "cpu",
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Asked:
    """Ask every fact that differs (prompt, rephrases, unrelated prompts), and the prompts of some facts common to both.

    Args:
        common: most facts active in both states that are asked. device: `auto` for the first GPU.

    Raises:
        UnsupportedModel: transformers cannot load the folder. MalmenError: bytes that are no longer stored.
    """
    if not diff.differs:
        return Asked([], [])
    with ledger.read() as db:
        layers = all_layers(db, diff.model)
        # The digests' order is as good as random, and the same every time.
        chosen = sorted(fact.fact_digest for fact in diff.common)[:common]
        kept = store.facts_with(db, chosen).values()
        editor = store.head(db, diff.model.id).editor_id  # the one in force, or the last that was
        settings = None if editor is None else settings_of(store.editor(db, editor))
    language_model = load_base(ledger, diff.model, layers, pick_device(device), settings)
    questions = _questions(language_model, diff, kept)
    caps = [length for _, _, length in questions.values()]
    answers: list[list[str]] = []
    for turn, state in enumerate((diff.a, diff.b)):
        _overlay(ledger, language_model, diff.model, state)
        said = language_model.generate(
            list(questions),
            caps,
            progress=lambda done, total, turn=turn: progress("asking", turn * total + done, 2 * total),  # type: ignore[misc]
        )
        answers.append([answer.text for answer in said])
    predictions = [
        Prediction(kind, prompt, target, before, after)
        for (prompt, (kind, target, _)), before, after in zip(questions.items(), *answers, strict=True)
    ]
    return Asked(predictions, _left_as_they_lie(ledger, diff.model, [layer.tensor for layer in layers]))


def _questions(
    language_model: LanguageModel, diff: StateDiff, kept: Iterable[Fact]
) -> dict[str, tuple[Kind, str, int]]:
    """What is asked: the prompt, with its kind, its newest target, and the tokens that its longest one takes."""
    questions: dict[str, tuple[Kind, str, int]] = {}
    superseded = [old for old, _ in diff.superseded]
    differing = [*diff.removed, *superseded, *(new for _, new in diff.superseded), *diff.added]
    for kind in KINDS:
        for fact in [*differing, *kept] if kind == "edit" else differing:
            for _, prompt, target in prompts_of(fact, (kind,)):
                tokens = language_model.tokenizing.fits(prompt, target)
                if tokens is not None:
                    earlier = questions.get(prompt, (kind, target, 0))
                    questions[prompt] = (earlier[0], target, max(earlier[2], tokens.supervised))
    return questions


def _overlay(ledger: Ledger, language_model: LanguageModel, model: ModelRecord, state: State) -> None:
    """Put the state's bytes of every layer that can be edited into the model."""
    stored = TensorBytes(ledger, model)
    with ledger.read() as db:
        layers = all_layers(db, model)
    weights = {}
    for layer in layers:
        record = model.manifest.tensors[layer.tensor]
        data = stored.get(layer.tensor, state.digest(model, layer.tensor))
        if data is not None:
            weights[layer.name] = from_bytes(data, torch_dtype(record.dtype), record.shape)
    language_model.overlay(weights)


def _left_as_they_lie(ledger: Ledger, model: ModelRecord, layers: Sequence[str]) -> list[str]:
    """Tensors that were changed behind the ledger's back and that no state's bytes were put over."""
    with ledger.read() as db:
        return [name for name in named_state(db, model, CHECKPOINT).strange if name not in layers]
