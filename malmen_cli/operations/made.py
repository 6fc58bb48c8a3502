"""An editor of a method without training, between its making and its keeping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.ledger import EditorRecord, Ledger, ModelRecord
from malmen_cli.operations.keeping import keep_editor


@dataclass(frozen=True)
class Made:
    """An editor that was made just now and is kept nowhere yet.

    Attributes:
        files: its two files. language_model: that it was made with, at its base weights, to go on with; None where
            whoever asked for it has let go of it.
        note: in words, what it was made from. warnings: in words too. seconds: that loading and making took.
    """

    files: Mapping[str, bytes]
    language_model: LanguageModel | None
    note: str
    warnings: list[str]
    seconds: float

    def keep(self, ledger: Ledger, model: ModelRecord) -> EditorRecord:
        """Put it into the workspace."""
        return keep_editor(ledger, model, self.files)
