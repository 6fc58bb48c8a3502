"""What a model and the work on it take, reckoned from its configuration alone, against what is really allocated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import FAMILIES, save_family_model
from tiny_models import DTYPES, save_tiny_model

from malmen_cli.config import TrainingConfig
from malmen_cli.editing.editor import Editor, LayerShape
from malmen_cli.editing.normal_equation import NormalEquation, PreservedKeys, cheapest_form
from malmen_cli.language_models.footprint import (
    Footprint,
    Job,
    _solve,
    batch_bytes,
    footprint,
    job_of,
    needs,
    plan_memory,
    stored_dtype,
    weight_bytes,
)
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.language_models.loading import empty_model, read_config
from malmen_cli.methods.registry import method_named
from malmen_cli.operations.memory import job_for

APPLY = Job("apply", facts=8, batch_tokens=512, rank=4, blocks=1, preserved_keys=24)
TRAIN = Job("train", facts=64, per_solve=8, batch_tokens=512, rank=4, blocks=1, preserved_keys=24)


def held(model: torch.nn.Module) -> int:
    """Bytes of a loaded model's own tensors, what is tied once."""
    found = {x.data_ptr(): x.nbytes for x in [*model.parameters(), *model.buffers()]}
    return sum(found.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_weights_are_those_of_the_loaded_model_to_the_byte(family: str, dtype: str, tmp_path: Path) -> None:
    folder = save_family_model(tmp_path / "model", family, dtype=dtype)
    loaded = LanguageModel(folder)
    assert stored_dtype(folder, read_config(folder)) == DTYPES[dtype]
    assert plan_memory(folder, None, APPLY).weights == held(loaded.model)


def test_another_dtype_than_that_of_the_files(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", "gpt2")
    for dtype in DTYPES.values():
        loaded = LanguageModel(folder, dtype=dtype)
        assert plan_memory(folder, None, APPLY, dtype).weights == held(loaded.model)


def test_a_configuration_without_a_dtype_leaves_it_to_the_files(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", "llama", dtype="bfloat16")
    config = read_config(folder)
    config.dtype = None
    assert stored_dtype(folder, config) == torch.bfloat16
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"no header")
    assert stored_dtype(folder, config) == torch.float32


def test_an_editor_takes_what_its_tensors_take() -> None:
    shapes = [LayerShape("a", 32, 16), LayerShape("b", 32, 16), LayerShape("c", 24, 16)]
    editor = Editor(shapes, rank=4, blocks=2)
    editor.preserved = [
        PreservedKeys(torch.randn(rows, shape.d_in)) for rows, shape in zip((8, 8, 8), shapes, strict=True)
    ]
    tensors = sum(x.numel() * x.element_size() for x in editor.tensors().values())
    job = Job("train", facts=1, rank=4, blocks=2, preserved_keys=8)
    # Learned four times over, and K0.
    found = needs(shapes, job, torch.float32)["editor"]
    anchors = sum(4 * 8 * shape.d_in for shape in shapes)
    assert found == pytest.approx(4 * (tensors - anchors) + anchors, rel=0.1)


@pytest.mark.parametrize("rows", [4, 20, 31, 32, 200])
@pytest.mark.parametrize("anchors", [0, 8, 32])
def test_a_solution_holds_what_is_reckoned(rows: int, anchors: int) -> None:
    shape = LayerShape("a", 32, 16)
    preserved = PreservedKeys(torch.randn(anchors, 32)) if anchors else None
    equation = NormalEquation(32, 16, preserved=preserved)
    equation.update(torch.randn(rows, 32), torch.randn(rows, 16))
    solution = equation.solve(ridge=0.1, preserved_strength=1.0 if anchors else 0.0)
    tensors = [solution.param_shift, solution._factor.matrix, solution._factor._lower, solution._rows, solution._duals]
    taken = sum(x.nbytes for x in tensors if x is not None)
    assert (solution.form == "primal") == (rows + anchors >= 32)
    job = Job("apply", facts=rows, preserved_keys=anchors)
    assert needs([shape], job, torch.float32)["solve"] == taken


@pytest.mark.parametrize(("anchors", "kept"), [(16, 0), (128, 2)])
def test_training_keeps_what_its_single_facts_are_solved_by_beside_its_largest_sets(anchors: int, kept: int) -> None:
    d, rows = 512, 200
    assert cheapest_form(rows, d, 16, preserved=anchors, repeated=True) == "kernel"
    preserved = PreservedKeys(torch.randn(anchors, d))
    for n in (1, rows):
        equation = NormalEquation(d, 16, preserved=preserved, repeated=True)
        equation.update(torch.randn(n, d), torch.randn(n, 16)).solve(ridge=0.1, preserved_strength=1.0)
    taken = sum(vars(preserved)[name].nbytes for name in ("second_moment",) if name in vars(preserved))
    taken += sum(x.nbytes for x in vars(preserved).get("spectrum", ()) if x.ndim == 2)
    assert _solve(LayerShape("a", d, 16), rows, anchors, repeated=True).moments == taken == kept * 8 * d * d


def whole(job: Job, folder: Path, dtype: torch.dtype | None = None) -> Footprint:
    return plan_memory(folder, None, job, dtype)


class TestParts:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return save_tiny_model(tmp_path / "model", "gpt2")

    def test_a_total_is_the_peak_of_what_is_there_at_once(self, folder: Path) -> None:
        apply, train = whole(APPLY, folder), whole(TRAIN, folder)
        held = apply.libraries + apply.weights + apply.base_copies + apply.editor + apply.rows
        assert apply.total == held + max(apply.batch, apply.solve) and apply.saving == 0
        held = train.libraries + train.weights + train.base_copies + train.editor + train.rows
        assert train.total == held + max(train.batch + train.solve, train.saving)
        assert apply.as_dict()["total"] == apply.total

    def test_what_training_keeps_grows_with_its_steps_and_an_apply_s_with_its_facts(self, folder: Path) -> None:
        few, many = (whole(Job("apply", facts=n, preserved_keys=0), folder) for n in (2, 3000))
        assert many.rows == few.rows == 0 and many.editor == few.editor
        assert many.solve > few.solve and many.batch > few.batch
        # However many facts: rows are folded into matrices of the layer's size.
        more = whole(Job("apply", facts=20_000, preserved_keys=0), folder)
        assert (more.solve, more.batch) == (many.solve, many.batch)
        small, large = (whole(Job("train", facts=64, per_solve=n, preserved_keys=0), folder) for n in (2, 8))
        assert large.solve > small.solve and large.rows == small.rows > 0
        longer = whole(Job("train", facts=640, per_solve=8, preserved_keys=0), folder)
        assert longer.rows == 10 * large.rows and longer.solve == large.solve

    def test_half_the_dtype_is_half_the_weights(self, folder: Path) -> None:
        full, half = (whole(APPLY, folder, dtype) for dtype in (torch.float32, torch.bfloat16))
        assert half.weights < 0.51 * full.weights and half.base_copies * 2 == full.base_copies
        assert (half.editor, half.solve) == (full.editor, full.solve)

    def test_covariances_of_keys_are_kept_and_made(self, folder: Path) -> None:
        settings: Any = method_named("memit").settings_class()()
        job = job_for("apply", settings, 8, 1024)
        plain, memit = whole(replace(job, covariances=False), folder), whole(job, folder)
        shapes = LanguageModel(folder).shapes
        squares = [shape.d_in**2 for shape in shapes]
        assert memit.editor - plain.editor == 4 * sum(squares)
        assert (plain.solve, memit.solve) == (0, 8 * max(sum(squares), 2 * max(squares)))
        assert needs(shapes, job, torch.float32)["covariances of keys"] == 4 * sum(squares)

    def test_what_cannot_be_done_without_is_less_than_what_is_planned(self, folder: Path) -> None:
        config = read_config(folder)
        loaded = LanguageModel(folder)
        for job in (APPLY, TRAIN, Job("eval")):
            planned = footprint(empty_model(folder, config), loaded.layers, job, torch.float32)
            required = needs(loaded.shapes, job, torch.float32)
            assert sum(required.values()) <= planned.total - planned.weights - planned.libraries
            assert required["solve"] <= planned.solve and required["edited layers"] <= planned.base_copies

    def test_a_batch_s_graph_starts_at_the_first_edited_layer(self, folder: Path) -> None:
        model = empty_model(folder, read_config(folder))
        last = LanguageModel(folder, layers=["transformer.h.2.mlp.c_proj"])
        all_of_them = LanguageModel(folder, layers=["transformer.h.*.mlp.c_proj"])
        small, large = (batch_bytes(model, one.layers, APPLY, torch.float32) for one in (last, all_of_them))
        assert small < large

    def test_the_graph_that_a_capture_keeps_is_about_what_is_reckoned(self, tmp_path: Path) -> None:
        from transformers import GPT2Config, GPT2LMHeadModel

        folder = save_tiny_model(tmp_path / "wide")
        torch.manual_seed(0)
        config = GPT2Config(n_embd=64, n_layer=6, n_head=2, n_positions=64, vocab_size=400)
        GPT2LMHeadModel(config).save_pretrained(folder)
        model = LanguageModel(folder)
        texts = [model.tokenizing(f"The capital of the land {i:03} is", " Rome") for i in range(32)]
        parameters = {x.untyped_storage().data_ptr() for x in model.model.parameters()}
        saved: dict[int, int] = {}
        tokens = 0

        def pack(x: torch.Tensor) -> torch.Tensor:
            storage = x.untyped_storage()
            if storage.data_ptr() not in parameters:
                saved[storage.data_ptr()] = storage.nbytes()
            return x

        [batch] = model.batches(texts, 10_000)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), model.weight_gradients():
            logits = model.logits(batch)
            tokens = batch.input_ids.numel()
        job = Job("apply", facts=1 << 20, batch_tokens=tokens)
        reckoned = batch_bytes(model.model, model.layers, job, torch.float32)
        reckoned -= 8 * max(1, tokens // 6) * logits.shape[1]
        assert 0.7 * reckoned < sum(saved.values()) < 1.3 * reckoned


def test_a_job_is_made_of_an_editor_s_settings() -> None:
    settings = TrainingConfig(facts_per_step=64, batch_tokens=100).model_dump()
    assert job_of("train", settings, facts=1000) == Job("train", 1000, 64, 100, 4096, 256, 2, 8192)
    assert job_of("apply", settings, facts=9, batch_tokens=7, preserved_keys=3) == Job(
        "apply", 9, None, 7, 1024, 256, 2, 3
    )


def test_weights_of_some_modules_count_what_they_share_once(tmp_path: Path) -> None:
    model = empty_model(save_tiny_model(tmp_path / "model"), read_config(tmp_path / "model"))
    tied = [model.get_input_embeddings(), model.get_output_embeddings()]  # type: ignore[operator]
    assert weight_bytes(model, torch.float32, tied) == weight_bytes(model, torch.float32, tied[:1])
