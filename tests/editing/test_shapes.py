"""The shapes that `malmen_cli.editing` states are checked in every test; an installation does without the checker."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from jaxtyping import TypeCheckError

from malmen_cli.editing.hypernetwork import HyperNetwork
from malmen_cli.editing.normal_equation import NormalEquation
from malmen_cli.editing.normalizer import Normalizer


def test_the_checker_is_at_work() -> None:
    with pytest.raises(TypeCheckError):
        Normalizer(3).update(torch.zeros(3))
    with pytest.raises(TypeCheckError):
        Normalizer(3).update(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(TypeCheckError):
        NormalEquation(3, 2).update(torch.zeros(4, 3), torch.zeros(5, 2))
    network = HyperNetwork(3, 2, layers=1, rank=1, blocks=1, generator=torch.Generator())
    with pytest.raises(TypeCheckError):
        network(torch.zeros(4), 0)


def test_an_installation_without_jaxtyping_can_solve() -> None:
    code = """
import sys
sys.modules["jaxtyping"] = None
import torch
from malmen_cli.editing.editor import Editor, LayerShape
editor = Editor([LayerShape("h.0", 3, 2)], rank=1, blocks=1)
editor.normalizers[0].update(torch.eye(5))
rows = torch.ones(4, 3), torch.ones(4, 2)
with torch.no_grad():
    print(editor.solve(0, editor.equation(0).update(rows[0], editor.value_diffs(0, *rows))).residual < 1e-12)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
