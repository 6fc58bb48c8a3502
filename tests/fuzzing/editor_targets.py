"""Editors, states of trainings and stored rows as a stranger may have made them: targets that need torch.

An editor that is accepted must be usable: it gives value differences, and its solve either gives a shift or refuses in
words. A state that is accepted must be one that a training can go on from.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import cache

import torch
from fuzz_targets import Target, check_words, require, scratch
from safetensors_folders import EDITED, write_model_folder

from malmen_cli.checkpoint import digest_bytes, read_manifest
from malmen_cli.config import EditorConfig, TrainingConfig
from malmen_cli.editing.editor import Editor, LayerShape
from malmen_cli.editing.normal_equation import PreservedKeys
from malmen_cli.errors import MalmenError
from malmen_cli.facts import printable
from malmen_cli.ledger import EditorRecord, ModelRecord, ObjectStore, RowSlice
from malmen_cli.operations.editors import DESCRIPTION, TENSORS, editor_files, load_editor
from malmen_cli.operations.layers import TensorLayer
from malmen_cli.operations.rows import RowReader
from malmen_cli.training.state import Progress, load_state, save_state

LAYERS = [TensorLayer(name.removesuffix(".weight"), name, False, 6, 4) for name in EDITED[:2]]
CONFIG = TrainingConfig(editor=EditorConfig(rank=2, blocks=1), steps=2)
RECORD = EditorRecord("0123456789", 1, "sha256:", "2026-01-01", True, {}, {})


@cache
def _model() -> ModelRecord:
    manifest = read_manifest(write_model_folder(scratch() / "edited"))
    return ModelRecord(1, "tiny", scratch() / "edited", manifest.digest, manifest.to_json(), {}, "2026-01-01")


def _editor(seed: int = 0) -> Editor:
    editor = Editor([LayerShape(x.name, x.d_in, x.d_out) for x in LAYERS], rank=2, blocks=1, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for normalizer in editor.normalizers:
        normalizer.update(torch.randn(9, 10, generator=generator))
    editor.preserved[0] = PreservedKeys(torch.randn(5, 6, generator=generator))
    editor.freeze_normalizers()
    return editor


def _files() -> dict[str, bytes]:
    return editor_files(_editor(), _model(), LAYERS, CONFIG, {"history": []})


def _state() -> bytes:
    editor = _editor()
    optimizer = torch.optim.Adam(editor.parameters())
    editor.value_diffs(0, torch.ones(2, 6), torch.ones(2, 4)).sum().backward()
    optimizer.step()
    path = scratch() / "state.safetensors"
    save_state(
        path, editor, optimizer, editor.tensors(), Progress(step=1, facts=4, history=[{"step": 1, "summary": 0.5}])
    )
    return path.read_bytes()


def _rows() -> bytes:
    from safetensors.torch import save

    return save({"u": torch.ones(3, 6), "d": torch.ones(3, 4)})


def editor_file(name: str) -> Target:
    """A target of one of an editor's two files, beside a sound other one."""

    def target(data: bytes) -> bool:
        folder = scratch() / "editor"
        folder.mkdir(exist_ok=True)
        for file, content in (_sound_files() | {name: data}).items():
            (folder / file).write_bytes(content)
        try:
            editor, layers = load_editor(folder, _model(), RECORD)
        except MalmenError as error:
            check_words(printable(error.message, limit=None))
            return False
        for index, layer in enumerate(layers):
            keys, grads = torch.ones(3, layer.d_in), torch.ones(3, layer.d_out)
            with torch.no_grad():
                diffs = editor.value_diffs(index, keys, grads)
            require(diffs.shape == (3, layer.d_out), "value differences of another shape")
            try:
                shift = editor.solve(index, editor.equation(index).update(keys, diffs)).param_shift
            except MalmenError:
                continue
            require(torch.isfinite(shift).all(), "a shift that is not finite")
        return True

    return target


@cache
def _sound_files() -> dict[str, bytes]:
    return _files()


def training_state(data: bytes) -> bool:
    path = scratch() / "resumed.safetensors"
    path.write_bytes(data)
    editor = _editor(seed=1)
    optimizer = torch.optim.Adam(editor.parameters())
    try:
        best, progress = load_state(path, editor, optimizer)
    except MalmenError as error:
        check_words(printable(error.message, limit=None))
        return False
    for name, value in asdict(Progress()).items():
        found = getattr(progress, name)
        require(
            isinstance(found, list) if name == "history" else type(found) in (type(value), int), f"{name} {found!r}"
        )
        require(name == "history" or found >= value, f"{name} {found!r}")
    if best:
        _editor().load_tensors(best)
    editor.value_diffs(0, torch.ones(2, 6), torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return True


def stored_rows(data: bytes) -> bool:
    """An object of rows whose name is its digest, as a stranger's ledger may have it."""
    folder = scratch() / "objects"
    objects = ObjectStore(folder)
    path = objects.path(digest_bytes(data))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    try:
        keys, diffs = RowReader(objects)(RowSlice(digest_bytes(data), 1, 2))
    except MalmenError as error:
        check_words(printable(error.message, limit=None))
        return False
    finally:
        path.unlink()
    require(keys.ndim == diffs.ndim == 2 and len(keys) == len(diffs) == 2, "rows of another shape")
    require(keys.is_floating_point() and diffs.is_floating_point(), "rows that are no numbers")
    return True


EDITOR_TARGETS: dict[str, Target] = {
    "editor.json": editor_file(DESCRIPTION),
    "editor.safetensors": editor_file(TENSORS),
    "training state": training_state,
    "stored rows": stored_rows,
}


@cache
def samples() -> dict[str, bytes]:
    """A sound input for each target."""
    files = _sound_files()
    return {
        "editor.json": files[DESCRIPTION],
        "editor.safetensors": files[TENSORS],
        "training state": _state(),
        "stored rows": _rows(),
    }
