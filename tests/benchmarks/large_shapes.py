"""The shapes of large models with random weights, on a GPU where there is one: time by phase, and peak memory.

    python tests/benchmarks/large_shapes.py --shape gpt-j --folder /scratch/gpt-j --device cuda

makes the checkpoint (once), then runs register, a few training steps, an apply of each number of facts and the revert
of each, through malmen's own operations, and prints a table. Random weights know nothing, so that scores would mean
nothing: what is measured is time and memory. `--shape gpt2` and `--shape tiny` are for machines without a GPU.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from phases import Phases
from safetensors_folders import file_digests
from tiny_models import fact_set, make_facts, tiny_tokenizer

from malmen_cli.config import EditorConfig, TrainingConfig
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.ledger import Ledger, create_workspace
from malmen_cli.operations import workbench
from malmen_cli.operations.apply import ApplyOptions, apply_facts
from malmen_cli.operations.models import register
from malmen_cli.operations.revert import revert_entry
from malmen_cli.operations.spent import resident_peak
from malmen_cli.operations.train import train_editor
from malmen_cli.training.step import MetaStep

GIB = 1 << 30
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("GPT2", {"n_layer": 3, "n_embd": 32, "n_head": 2, "n_positions": 64, "vocab_size": 400}),
    "gpt2": ("GPT2", {}),
    "gpt-j": ("GPTJ", {}),
    "llama-3-8b": (
        "Llama",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 8192,
            "rope_theta": 500000.0,
        },
    ),
}


def save_shape(folder: Path, shape: str, dtype: str) -> None:
    """Save a model of random weights, made in its dtype, with a small tokenizer."""
    import transformers
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    name, settings = SHAPES[shape]
    model_class = getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(name, f"{name}ForCausalLM"))
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        model = model_class(getattr(transformers, f"{name}Config")(**settings))
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def peak_memory(device: str) -> str:
    """Of the GPU's allocator since the last reset, else of this process so far."""
    if torch.device(device).type == "cuda":
        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return f"{peak / GIB:.1f} GiB on the GPU"
    return f"{(resident_peak() or 0) / GIB:.2f} GiB so far"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--folder", type=Path, required=True, help="where the checkpoint and the workspace are made")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--facts", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rank", type=int, default=1920)
    options = parser.parse_args()
    model_folder, device = options.folder / "model", options.device
    if not model_folder.exists():
        save_shape(model_folder, options.shape, options.dtype)
    shutil.rmtree(options.folder / ".malmen", ignore_errors=True)
    phases = Phases(device)
    phases.watch_batches(LanguageModel, "capture", "capture of rows")
    phases.watch_batches(LanguageModel, "capture_reference", "capture of references")
    phases.watch(MetaStep, "edited_weights", "step: value differences and solve")
    phases.watch(MetaStep, "_measure", "step: edited model, forward and backward")
    phases.watch(MetaStep, "_back", "step: back through solve and hyper-network")
    phases.watch(workbench, "solve_active", "solve of an apply")
    print(f"{options.shape}, {options.dtype}, {device}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| what | seconds | peak memory | of which |\n|---|---|---|---|")

    @contextmanager
    def row(what: str, per: int = 1) -> Iterator[None]:
        phases.clear()
        began = time.monotonic()
        yield
        phases.sync()
        parts = ", ".join(f"{name} {seconds / per:.2f}" for name, seconds in phases.seconds.items())
        total = (time.monotonic() - began) / per
        print(f"| {what} | {total:.2f} | {peak_memory(device)} | {parts} |", flush=True)

    largest = max(options.facts)
    config = TrainingConfig(
        steps=options.steps,
        facts_per_step=min(1024, largest),
        sample_size=False,
        editor=EditorConfig(rank=options.rank),
        max_held_out=16,
    )
    with Ledger.open(create_workspace(options.folder), writing=True) as ledger:
        with row("register"):
            model = register(ledger, options.shape, model_folder).model
        before = file_digests(model_folder)
        # Names come from the far end: none of them is one that is applied below.
        training = fact_set(make_facts(config.facts_per_step + 32, start=4096 - config.facts_per_step - 32))
        with row(
            f"train: {options.steps} steps of {config.facts_per_step:,} facts, with capture; per step", options.steps
        ):
            train_editor(ledger, model, training, config, device=device)
        for count in options.facts:
            facts = fact_set(_many(count))
            with row(f"apply of {count:,} facts"):
                apply_facts(ledger, model, facts, ApplyOptions(device=device, sample=0), "malmen apply")
            with row(f"revert of {count:,} facts"):
                revert_entry(ledger, model, "HEAD", (), "malmen revert HEAD")
            assert file_digests(model_folder) == before, "the revert did not restore the files"


def _many(count: int) -> list[Any]:
    """Facts of as many prompts: names repeat after 4,096, so that each round asks in words of its own."""
    from dataclasses import replace

    rounds = ("The capital of {} is", "The main city of {} is", "The seat of {}'s rulers is", "{} is ruled from")
    return [
        replace(fact, prompt=rounds[i // 3000].format(fact.subject))
        for i in range(count)
        for fact in make_facts(1, start=i % 3000)
    ]


if __name__ == "__main__":
    main()
