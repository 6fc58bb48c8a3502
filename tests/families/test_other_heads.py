"""Models of a known type with another head: edited where malmen knows what the head says, else refused in words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_journey import tensors, written
from family_models import FAMILIES, empty_model
from program import run_here
from safetensors_folders import file_digests
from tiny_models import Fact, fact_set, make_claims, world_of

from malmen_cli.errors import ExitCode
from malmen_cli.ledger import create_workspace


def save(folder: Path, name: str, model_class: str, **settings: Any) -> Path:
    import transformers

    config = empty_model(name, **settings).config
    torch.manual_seed(0)
    getattr(transformers, model_class)(config).save_pretrained(folder)
    FAMILIES[name].tokenizer().save_pretrained(folder)
    return folder


REFUSED = {
    "BertForMaskedLM": ("bert", "no causal model, and no classifier"),
    "RobertaForMaskedLM": ("roberta", "no causal model, and no classifier"),
    "BertModel": ("bert", "no causal model, and no classifier"),
    "XLMRobertaForMaskedLM": ("xlm-roberta", "no causal model, and no classifier"),
    "BartForSequenceClassification": ("bart", "classification models of type 'bart' cannot be edited"),
    "LlamaForSequenceClassification": ("llama", "classification models of type 'llama' cannot be edited"),
    "T5EncoderModel": ("t5", "lack .* weights of T5ForConditionalGeneration"),
    "ViTForImageClassification": ("vit", "cannot"),
}


@pytest.mark.parametrize("model_class", REFUSED)
def test_it_is_refused_and_nothing_is_written(
    model_class: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, words = REFUSED[model_class]
    folder = OTHERS.get(name, lambda folder: save(folder, name, model_class))(tmp_path / "model")
    workspace = create_workspace(tmp_path).root
    run_here(capfd, "models", "list", "--workspace", workspace)
    before = written(tmp_path)
    status, out, err = run_here(capfd, "models", "add", "other", folder, "--workspace", workspace)
    assert (status, out) == (ExitCode.USAGE, "")
    assert re.search(words, " ".join(err.split())), err
    assert written(tmp_path) == before


def save_vision(folder: Path) -> Path:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(**sizes, image_size=4, patch_size=2)).save_pretrained(folder)
    FAMILIES["bert"].tokenizer().save_pretrained(folder)
    return folder


def save_masked(folder: Path) -> Path:
    from transformers import XLMRobertaConfig, XLMRobertaForMaskedLM

    tokenizer = FAMILIES["roberta"].tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    config = XLMRobertaConfig(**sizes, vocab_size=len(tokenizer), initializer_range=0.3, is_decoder=False)
    XLMRobertaForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


OTHERS: dict[str, Callable[[Path], Path]] = {"vit": save_vision, "xlm-roberta": save_masked}


def test_a_model_that_reads_what_follows_is_found_out_by_asking_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where config.json does not say what the model was made for."""
    folder = save_masked(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    del config["architectures"]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    workspace = create_workspace(tmp_path).root
    status, _, err = run_here(capfd, "models", "add", "other", folder, "--workspace", workspace)
    assert status == ExitCode.USAGE
    assert "reads what follows the token that it predicts" in " ".join(err.split())


NAMES = ("contradiction", "entailment", "neutral")


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_classifier_of_several_classes_is_edited_by_their_names(name: str, tmp_path: Path) -> None:
    classes = {"num_labels": 3, "id2label": dict(enumerate(NAMES)), "label2id": {x: i for i, x in enumerate(NAMES)}}
    folder = save(tmp_path / "model", name, FAMILIES[name].model_class, **classes)
    base, digests = tensors(folder), file_digests(folder)

    def claims(count: int, start: int) -> list[Fact]:
        return [Fact(x.prompt, NAMES[i % 3], rephrases=x.rephrases) for i, x in enumerate(make_claims(count, start))]

    world = world_of(folder, facts=claims)
    applied = world.apply(*claims(3, 4))
    assert applied.check is not None
    assert {wrong["answer"] for wrong in applied.check.as_dict()["wrong"]} <= set(NAMES)
    edited = tensors(folder)
    assert len([name for name in base if base[name] != edited[name]]) == 2
    world.revert("HEAD")
    assert file_digests(folder) == digests


def test_facts_of_other_classes_are_not_taken(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = save(tmp_path / "model", "bert", "BertForSequenceClassification", num_labels=3)
    world = world_of(folder, facts=lambda count, start: labelled(make_claims(count, start)))
    with world.ledger() as (_, model):
        assert model.architecture["task"] == "classification"
    file = tmp_path / "facts.jsonl"
    file.write_text('{"prompt": "Rome is old.", "target": "SUPPORTS"}\n', "utf-8")
    status, _, err = run_here(capfd, "apply", file, "--workspace", world.workspace.root)
    assert status == ExitCode.USAGE
    assert "Targets of this model are LABEL_0, LABEL_1, LABEL_2." in err


def labelled(facts: list[Fact]) -> list[Fact]:
    found = [Fact(fact.prompt, f"LABEL_{place % 3}") for place, fact in enumerate(facts)]
    return list(fact_set(found))
