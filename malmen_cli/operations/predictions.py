"""Asking a model in two of its states: greedy answers before and after, in memory, nothing written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from malmen_cli.evaluation.results import KINDS, Kind, prompts_of
from malmen_cli.facts import Fact
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.ledger import Ledger, store
from malmen_cli.operations.diff import StateDiff
from malmen_cli.operations.editors import settings_of
from malmen_cli.operations.layers import TensorLayer, all_layers
from malmen_cli.operations.models import load_base, pick_device
from malmen_cli.operations.states import CHECKPOINT, State, named_state
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
        language_model.overlay(_weights(diff, state, layers))
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
    return Asked(predictions, _left_as_they_lie(ledger, diff, layers))


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
                    first, newest, length = questions.get(prompt, (kind, target, 0))
                    # A fact's unrelated prompt may be another's edit prompt, whose target is the other's own.
                    newest = target if kind == first else newest
                    questions[prompt] = (first, newest, max(length, tokens.supervised))
    return questions


def _weights(diff: StateDiff, state: State, layers: Sequence[TensorLayer]) -> dict[str, Tensor]:
    """The state's bytes of every layer that can be edited, by the module's name."""
    weights = {}
    for layer in layers:
        record = diff.model.manifest.tensors[layer.tensor]
        data = diff.stored.get(layer.tensor, state.digest(diff.model, layer.tensor))
        if data is not None:
            weights[layer.name] = from_bytes(data, torch_dtype(record.dtype), record.shape)
    return weights


def _left_as_they_lie(ledger: Ledger, diff: StateDiff, layers: Sequence[TensorLayer]) -> list[str]:
    """Tensors that were changed behind the ledger's back and that no state's bytes were put over."""
    strange: Sequence[str] = diff.strange
    if CHECKPOINT not in (diff.a.name, diff.b.name):
        with ledger.read() as db:
            strange = named_state(db, diff.model, CHECKPOINT).strange
    return [name for name in strange if name not in {layer.tensor for layer in layers}]
