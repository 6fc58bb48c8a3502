"""What a per-set method is to the rest of the program: shifts of the edited layers from all active facts at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from malmen_cli.editing.editor import LayerShape
from malmen_cli.errors import UnsafeFile
from malmen_cli.facts import Fact
from malmen_cli.language_models.language_model import LanguageModel

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def silent(what: str, done: int, total: int) -> None:
    """A `Progress` that shows nothing."""


class SetMethod:
    """Shifts that depend on the whole set of facts, made anew from the base weights whenever the set changes.

    Args:
        settings: of this method's class in `methods.settings`. shapes: the edited layers, in the model's order.

    Attributes:
        copies: float32 copies of the edited weights that `shifts` holds beside the model, for plans of memory.
    """

    copies = 4  # weights, gradients and Adam's two moments

    def __init__(self, settings: Any, shapes: Sequence[LayerShape]) -> None:
        self.settings, self.shapes = settings, tuple(shapes)

    @classmethod
    def pick(cls, settings: Any, shapes: Sequence[LayerShape]) -> Sequence[LayerShape]:
        """Which of the registered layers it edits where its settings name none: all of them."""
        return shapes

    def prepare(
        self, model: LanguageModel, facts: Sequence[Fact], text: str | None, *, progress: Progress = silent
    ) -> None:
        """Once, when the editor is made, at the base weights: whatever is kept with it and never changes afterwards.

        Args:
            model: of which `model.layers` are the editor's. text: running text, where the user gave some.

        Raises:
            UsageError: it cannot be made from this model, or without text.
        """

    def tensors(self) -> dict[str, Tensor]:
        """What `prepare` has left, as named CPU tensors; an editor's file holds just these."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take in what `tensors` gave, from a file that anybody may have written: every name, shape and dtype checked.

        Raises:
            UnsafeFile: naming the first tensor that does not fit.
        """
        if tensors:
            raise UnsafeFile(f"editor: unknown tensors {sorted(tensors)[:3]}")

    def check(self, model: LanguageModel, facts: Sequence[Fact]) -> None:
        """Refuse facts that the method cannot edit, before anything is computed.

        Raises:
            UsageError: naming them.
        """

    def shifts(self, model: LanguageModel, facts: Sequence[Fact], *, progress: Progress = silent) -> list[Tensor]:
        """S (d_in, d_out) float32 per layer of `model.layers`, such that the edited weights are `round(W0 + S)`.

        Args:
            model: at its base weights, before and after (also where this raises). facts: all active ones, in the
                ascending order of their edit digests; the same facts give the same bits.

        Raises:
            NumericalFailure: it diverged. UsageError: a fact that it cannot edit.
        """
        raise NotImplementedError
