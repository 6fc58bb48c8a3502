"""What is exported of a model of each task, loaded by transformers and peft as their users load it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from family_journey import first_facts, losses, losses_of, make_family_world
from family_models import AUTO_CLASSES, FAMILIES
from program import run_here

from malmen_cli.errors import ExitCode


@pytest.mark.parametrize("name", ["opt", "gemma3", "t5_gated", "bart", "bert", "roberta"])
# peft reads a property that transformers has renamed.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_whole_checkpoint_and_an_adapter_say_what_the_edited_one_says(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import transformers
    from peft import PeftModel

    task = FAMILIES[name].task
    facts = first_facts(task)
    world = make_family_world(tmp_path, name)
    base = shutil.copytree(world.checkpoint, tmp_path / "base")
    world.apply(*facts)
    for kind in ("full", "lora"):
        rank = ["--rank", "16"] if kind == "lora" else []
        words = ["export", "-o", tmp_path / kind, "--as", kind, *rank, "--workspace", world.workspace.root]
        assert run_here(capfd, *words)[0] == ExitCode.DONE
    edited = losses(world.checkpoint, task, facts)
    assert losses(tmp_path / "full", task, facts) == edited
    assert (tmp_path / "full" / "model.safetensors").read_bytes() == (
        world.checkpoint / "model.safetensors"
    ).read_bytes()

    plain = getattr(transformers, AUTO_CLASSES[task]).from_pretrained(base, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    unedited = losses_of(plain.eval(), tokenizer, task, facts)
    adapted = losses_of(PeftModel.from_pretrained(plain, tmp_path / "lora").eval(), tokenizer, task, facts)
    assert adapted == pytest.approx(edited, abs=1e-4)
    assert adapted != pytest.approx(unedited, abs=1e-2)
