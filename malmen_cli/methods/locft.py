"""LocFT-BF: breadth-first mini-batch fine-tuning of one matrix (Yang et al., arXiv 2509.22072)."""

from __future__ import annotations

from collections.abc import Sequence

from malmen_cli.editing.editor import LayerShape
from malmen_cli.methods.fine_tuning import FineTuning
from malmen_cli.methods.settings import LocFTSettings


class LocFT(FineTuning):
    """The loop of `FineTuning` on the weight of one layer: every epoch goes over all facts in a new order, in
    mini-batches, instead of each fact by itself until it is learnt; batches that are learnt are passed over.
    """

    settings: LocFTSettings

    @classmethod
    def pick(cls, settings: LocFTSettings, shapes: Sequence[LayerShape]) -> Sequence[LayerShape]:
        """One of the layers, at `settings.depth` of the way from the first to the last."""
        return shapes[(place := round(settings.depth * (len(shapes) - 1))) : place + 1]
