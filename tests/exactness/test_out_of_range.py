"""An edit that leaves the range of the checkpoint's dtype is refused before a byte is written."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import everything, make_facts, make_world

from malmen_cli.editing.editor import Editor
from malmen_cli.errors import ExitCode, NumericalFailure


@pytest.mark.parametrize(("dtype", "times"), [("float16", 1e7), ("bfloat16", 1e40), ("float32", 1e40)])
def test_a_shift_out_of_range_is_refused(
    dtype: str, times: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """float16 ends at 65,504, the others at 3e38; the editor's step size is made that much too large."""
    world = make_world(tmp_path / "world", dtype=dtype)
    step_size = Editor.step_size
    monkeypatch.setattr(Editor, "step_size", lambda self, layer: step_size(self, layer) * times)
    before = everything(world)
    with pytest.raises(NumericalFailure, match="finite") as refusal:
        world.apply(*make_facts(3))
    assert refusal.value.exit_code == ExitCode.FAILED
    assert refusal.value.remedy
    assert everything(world) == before


def test_what_float16_cannot_hold_bfloat16_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the refusal is the dtype's, not the step size's."""
    world = make_world(tmp_path / "world", dtype="bfloat16")
    step_size = Editor.step_size
    monkeypatch.setattr(Editor, "step_size", lambda self, layer: step_size(self, layer) * 1e7)
    assert world.apply(*make_facts(3)).entry is not None
