"""One model's whole way, from registering it to the last revert, with what its files held after each step."""

from __future__ import annotations

import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from family_models import AUTO_CLASSES, FamilyModel, Task, every_model, save_family_model
from safetensors_folders import file_digests
from tiny_models import (
    TINY_TRAINING,
    Fact,
    World,
    make_claim,
    make_claims,
    make_fact,
    make_facts,
    world_of,
    write_facts,
)

from malmen_cli.cli.main import app
from malmen_cli.config import TrainingConfig
from malmen_cli.ledger import verify_ledger
from malmen_cli.operations.apply import Applied
from malmen_cli.operations.layers import TensorLayer, layers_of
from malmen_cli.operations.revert import Reverted

Tensors = dict[str, bytes]


# Two steps teach a classifier's editor nothing: its claims are much alike, and what it starts from, their differences
# to the mean, may point either way.
TRAINING: dict[Task, TrainingConfig] = {
    "causal": TINY_TRAINING,
    "sequence-to-sequence": TINY_TRAINING,
    "classification": TINY_TRAINING.model_copy(
        update={"steps": 20, "learning_rate": 0.01, "scalar_learning_rate": 0.05, "validate_every": 20}
    ),
}


def first_facts(task: Task) -> list[Fact]:
    """Four facts; the tokenizers cut their targets into several tokens."""
    return (make_claims if task == "classification" else make_facts)(4, 4)


def second_facts(task: Task) -> list[Fact]:
    """Another target for the first of the first facts, and two facts beside them."""
    if task == "classification":
        return [make_claim(4, "REFUTES"), make_claim(8), make_claim(9)]
    return [make_fact(4, "Oslo"), make_fact(8), make_fact(9)]


@dataclass(frozen=True)
class Journey:
    """What one model went through.

    Attributes:
        layers: as registered. base, first, both, second, second_again: the tensors as saved, with the first facts
            applied, with the second ones too, with the first entry reverted, and with the second facts applied in a
            world that never saw the first. registered, restored: digests of every file at the start and at the end.
        judged: loss of each first fact, of the saved model and with the first facts applied, by transformers alone.
        entry_report, file_report, diff, plan: what the commands print as JSON.
    """

    family: FamilyModel
    dtype: str
    layers: list[TensorLayer]
    base: Tensors
    first: Tensors
    both: Tensors
    second: Tensors
    second_again: Tensors
    registered: dict[str, str]
    restored: dict[str, str]
    applied: Applied
    superseding: Applied
    reverts: list[Reverted]
    judged: tuple[list[float], list[float]]
    entry_report: dict[str, Any]
    file_report: dict[str, Any]
    diff: dict[str, Any]
    plan: dict[str, Any]
    problems: list[Any]


def travel(folder: Path, name: str, dtype: str) -> Journey:
    family = every_model()[name]
    world = make_family_world(folder / "one", name, dtype)
    base, registered = tensors(world.checkpoint), file_digests(world.checkpoint)
    facts, more = first_facts(family.task), second_facts(family.task)
    judged_before = losses(world.checkpoint, family.task, facts)
    applied = world.apply(*facts)
    first, judged_after = tensors(world.checkpoint), losses(world.checkpoint, family.task, facts)
    entry_report = told(world, "eval", "HEAD", "--max-new-tokens", "3")
    file_report = told(world, "eval", write_facts(folder / "more.jsonl", more), "--no-generate")
    plan = told(world, "plan", folder / "more.jsonl")
    diff = told(world, "diff", "base", "--predictions")
    superseding = world.apply(*more)
    both = tensors(world.checkpoint)
    reverts = [world.revert("#2")]
    second = tensors(world.checkpoint)
    reverts.append(world.revert("#3"))
    with world.ledger() as (ledger, model):
        layers, problems = layers_of(model.architecture), list(verify_ledger(ledger).problems)
    other = make_family_world(folder / "other", name, dtype)
    other.apply(*more)
    return Journey(
        family=family,
        dtype=dtype,
        layers=layers,
        base=base,
        first=first,
        both=both,
        second=second,
        second_again=tensors(other.checkpoint),
        registered=registered,
        restored=file_digests(world.checkpoint),
        applied=applied,
        superseding=superseding,
        reverts=reverts,
        judged=(judged_before, judged_after),
        entry_report=entry_report,
        file_report=file_report,
        diff=diff,
        plan=plan,
        problems=problems,
    )


def make_family_world(folder: Path, name: str, dtype: str = "float32") -> World:
    task = every_model()[name].task
    facts = make_claims if task == "classification" else make_facts
    checkpoint = save_family_model(folder / "model", name, dtype=dtype)
    return world_of(checkpoint, training=TRAINING[task], facts=facts)


def told(world: World, *arguments: str | Path) -> dict[str, Any]:
    """What a command prints as JSON, in this process: torch is loaded only once."""
    out = StringIO()
    with redirect_stdout(out), redirect_stderr(StringIO()):
        words = [*map(str, arguments), "--json", "--workspace", str(world.workspace.root)]
        app(words, standalone_mode=False)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def tensors(folder: Path) -> Tensors:
    """Every tensor's bytes, and the file's header under an empty name, read by hand."""
    data = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    places = {name: entry["data_offsets"] for name, entry in header.items()}
    return {"": data[:start]} | {name: data[start + a : start + b] for name, (a, b) in places.items()}


def written(folder: Path) -> dict[str, str]:
    """Digest of every file but SQLite's own scratch files."""
    return {name: digest for name, digest in file_digests(folder).items() if not name.endswith(("-wal", "-shm"))}


def losses(folder: Path, task: Task, facts: list[Fact]) -> list[float]:
    """Mean loss over each fact's target tokens, or of its label, by transformers alone and in float32."""
    import transformers

    model = getattr(transformers, AUTO_CLASSES[task]).from_pretrained(folder, dtype=torch.float32).eval()
    return losses_of(model, transformers.AutoTokenizer.from_pretrained(folder), task, facts)


@torch.no_grad()
def losses_of(model: Any, tokenizer: Any, task: Task, facts: list[Fact]) -> list[float]:
    found = []
    for fact in facts:
        prompt = tokenizer(fact.prompt, return_tensors="pt").input_ids
        if task == "causal":
            ids = tokenizer(f"{fact.prompt} {fact.target}", return_tensors="pt").input_ids
            labels = ids.clone()
            labels[:, : prompt.shape[1]] = -100
            loss = model(input_ids=ids, labels=labels).loss
        elif task == "sequence-to-sequence":
            labels = tokenizer(text_target=fact.target, return_tensors="pt").input_ids
            loss = model(input_ids=prompt, labels=labels).loss
        else:
            wanted = torch.tensor(float(fact.target == "SUPPORTS"))
            logit = model(input_ids=prompt).logits[0, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, wanted)
        found.append(float(loss))
    return found
