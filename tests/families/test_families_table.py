"""The table of families: printed by the command, told in the README, true of the models, and each row tried."""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import AUTO_CLASSES, FAMILIES, empty_model
from program import run_here
from test_every_family import CASES

from malmen_cli.errors import ExitCode, UnsupportedModel
from malmen_cli.language_models import families
from malmen_cli.language_models.edited_layers import family_layers, inspected_layers

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")


def printed(capfd: pytest.CaptureFixture[str], *flags: str) -> str:
    status, out, _ = run_here(capfd, "models", "families", *flags)
    assert status == ExitCode.DONE
    return out


def module_names(name: str, **settings: Any) -> list[str]:
    return [path for path, _ in empty_model(name, **settings).named_modules()]


def types_of(name: str) -> str:
    return str(empty_model(name).config.model_type)


def test_the_command_lists_every_family(capfd: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(printed(capfd, "--json"))
    assert [row["model_type"] for row in rows] == list(families.BY_TYPE)
    assert printed(capfd, "-q").split() == list(families.BY_TYPE)
    table = printed(capfd)
    for row in rows:
        assert re.search(rf"{re.escape(row['name'])} +{row['model_type']} ", table)
        assert all(glob in table for glob in row["edited"])
        assert row["captured"] in table and row["tokenised"] in table


def test_the_readme_has_the_same_rows(capfd: pytest.CaptureFixture[str]) -> None:
    section = README.split("\n## Families\n")[1].split("\n## ")[0]
    found = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[1].startswith("`"):
            globs = re.findall(r"`([^`]+)`", cells[3])
            found.append((cells[0], cells[1].strip("`"), cells[2], globs, int(cells[4])))
    wanted = json.loads(printed(capfd, "--json"))
    assert found == [(x["name"], x["model_type"], x["task"], x["edited"], x["blocks"]) for x in wanted]


def test_every_row_goes_the_whole_way_in_both_dtypes() -> None:
    tried = {(types_of(name), dtype) for name, dtype in CASES if name in FAMILIES}
    assert tried >= {(kind, dtype) for kind in families.BY_TYPE for dtype in ("float32", "bfloat16")}
    assert {kind for kind, _ in tried} == families.BY_TYPE.keys()


@pytest.mark.parametrize("kind", families.BY_TYPE)
def test_a_row_is_true_of_its_models(kind: str) -> None:
    family = families.BY_TYPE[kind]
    names = [name for name in FAMILIES if types_of(name) == kind]
    assert {FAMILIES[name].task for name in names} == {family.task}
    modules = {path: module for name in names for path, module in empty_model(name).named_modules()}
    for glob in family.edited:
        fitting = fnmatch.filter(modules, glob)
        assert fitting, f"no tiny model has a layer {glob}"
        for path in fitting:
            right = type(modules[path]).__name__ == "Conv1D"
            assert family.stored == ("d_in, d_out" if right else "d_out, d_in")


PAPER = [  # arXiv 2311.04661: the blocks it edits, at the depths of its models
    ("gpt2", {"n_layer": 12}, "transformer.h.{}.mlp.c_proj", range(6, 12)),
    ("gptj", {"n_layer": 28}, "transformer.h.{}.mlp.fc_out", range(22, 28)),
    ("bert", {"num_hidden_layers": 12}, "bert.encoder.layer.{}.output.dense", range(6, 12)),
]


@pytest.mark.parametrize(("name", "depth", "path", "blocks"), PAPER, ids=[case[0] for case in PAPER])
def test_the_papers_layers_are_the_default(name: str, depth: dict[str, int], path: str, blocks: range) -> None:
    assert family_layers(types_of(name), module_names(name, **depth)) == [path.format(block) for block in blocks]


def test_the_papers_layers_of_t5_xl_are_the_default() -> None:
    names = module_names("t5_gated", num_layers=24, num_decoder_layers=24)
    assert family_layers("t5", names) == [
        f"{stack}.block.{block}.layer.{place}.DenseReluDense.{kind}"
        for stack, place in (("encoder", 1), ("decoder", 2))
        for block in (22, 23)
        for kind in ("wi_0", "wo")
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_inspection_finds_what_the_table_says(name: str) -> None:
    model = empty_model(name)
    by_table = family_layers(types_of(name), [path for path, _ in model.named_modules()])
    # Of T5 the paper edits the layers that widen, too; inspection finds those that narrow.
    assert inspected_layers(model, "unheard-of") == [path for path in by_table if not path.endswith((".wi", ".wi_0"))]


def as_published(model_class: str) -> Any:
    """A model of its configuration's own sizes, without memory for its weights."""
    import transformers

    kind: Any = getattr(transformers, model_class)
    with torch.device("meta"):
        return kind(kind.config_class())


WITHOUT_MLPS = (
    *("GptOssForCausalLM", "DeepseekV3ForCausalLM", "Qwen3NextForCausalLM"),  # attention alone narrows
    *("GraniteMoeHybridForCausalLM", "Zamba2ForCausalLM", "MambaForCausalLM"),  # or Mamba does
)


@pytest.mark.parametrize("model_class", WITHOUT_MLPS)
def test_inspection_takes_no_attention_and_no_mamba_for_an_mlp(model_class: str) -> None:
    with pytest.raises(UnsupportedModel, match="finds no MLP down-projection"):
        inspected_layers(as_published(model_class), "unheard-of")


MLPS = {  # of other names and depths than the table's
    "BambaForCausalLM": "model.layers.31.feed_forward.down_proj",
    "BloomForCausalLM": "transformer.h.1.mlp.dense_4h_to_h",
    "CTRLLMHeadModel": "transformer.h.47.ffn.2",
    "Lfm2ForCausalLM": "model.layers.31.feed_forward.w2",
    "ModernBertDecoderForCausalLM": "model.layers.21.mlp.Wo",
    "Qwen2MoeForCausalLM": "model.layers.23.mlp.shared_expert.down_proj",
    "XGLMForCausalLM": "model.layers.23.fc2",
}


@pytest.mark.parametrize("model_class", MLPS)
def test_inspection_finds_mlps_by_many_names(model_class: str) -> None:
    assert inspected_layers(as_published(model_class), "unheard-of")[-1] == MLPS[model_class]


def test_every_task_has_its_class() -> None:
    assert AUTO_CLASSES.keys() == families.CAPTURED.keys() == families.TOKENISED.keys()
