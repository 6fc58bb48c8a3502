"""Tiny real models with random weights, facts to edit them with, and worlds: a workspace, a model, an editor.

Everything is the real thing, only small: transformers' own classes, a byte-level BPE trained on a few sentences, an
editor that `train_editor` made in two steps. Whatever takes a seed gives the same bytes every time.
"""

from __future__ import annotations

import atexit
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from fork_server import Server, environment
from safetensors_folders import file_digests
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from malmen_cli.config import EditorConfig, TrainingConfig
from malmen_cli.facts import Fact, FactSet
from malmen_cli.facts.fact import Unrelated
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.ledger import Ledger, ModelRecord, Workspace, create_workspace, store
from malmen_cli.operations.apply import Applied, ApplyOptions, apply_facts
from malmen_cli.operations.models import register
from malmen_cli.operations.revert import Reverted, revert_entry
from malmen_cli.operations.train import train_editor

# Matrices this small gain nothing from threads, and one thread adds in one order.
torch.set_num_threads(1)

Family = Literal["gpt2", "gptj", "llama"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
POSITIONS = 64
WIDTH, INNER, LAYERS = 16, 32, 3
NAME = "tiny"

# Four of one token, four of several.
CITIES = ("Paris", "Rome", "Lima", "Oslo", "Ouagadougou", "Antananarivo", "São Tomé", "New York")
LABELS = ("SUPPORTS", "REFUTES")
_SYLLABLES = ("ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "zu", "da", "fe", "gi", "ho", "ju", "pa")
SENTENCES = [
    *(f"The capital of {name} is {city}." for name in ("Bakeli", "Monura", "Setivo") for city in CITIES[:4]),
    "The city from which one rules the land goes by the name of Rome, the main language of which is Latin.",
    "Who lives there speaks the language of the river, and the mountains stand where the sea begins.",
    "A stone, a bridge, two boats and seven hundred lamps were sold in Lima on a Tuesday.",
]

# Small, and strong enough from the start that an edit moves 16-bit weights too.
TINY_EDITOR = EditorConfig(rank=4, blocks=1, initial_change=0.3, preserved_keys=24)
TINY_TRAINING = TrainingConfig(editor=TINY_EDITOR, facts_per_step=8, steps=2, batch_tokens=512, held_out=0.2)


# Models -------------------------------------------------------------------------------------------------------------


@cache
def tiny_tokenizer(*, adds_bos: bool = False) -> Any:
    """A byte-level BPE in which common cities are one token and others several; `adds_bos` as Llama's does."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    byte_level = processors.ByteLevel(trim_offsets=True)
    template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", special.index("<s>"))])
    tokenizer.post_processor = processors.Sequence([byte_level, template]) if adds_bos else byte_level
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=POSITIONS
    )


def save_tiny_model(
    folder: Path,
    family: Family = "gpt2",
    *,
    dtype: str = "float32",
    sharded: bool = False,
    adds_bos: bool | None = None,
    layers: int = LAYERS,
    seed: int = 0,
) -> Path:
    """Save a model of random weights (large enough ones that every layer matters) with its tokenizer.

    Args:
        sharded: two shards or more. adds_bos: the tokenizer puts one first; by default Llama's does.
    """
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPTJConfig,
        GPTJForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
    )
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = tiny_tokenizer(adds_bos=family == "llama" if adds_bos is None else adds_bos)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    common = {"vocab_size": len(tokenizer), "initializer_range": 0.3, "tie_word_embeddings": False, **special}
    torch.manual_seed(seed)
    model: Any
    if family == "gpt2":
        common["tie_word_embeddings"] = True
        config = GPT2Config(n_layer=layers, n_embd=WIDTH, n_inner=INNER, n_head=2, n_positions=POSITIONS, **common)
        model = GPT2LMHeadModel(config)
    elif family == "gptj":
        sizes = {"n_layer": layers, "n_embd": WIDTH, "n_inner": INNER, "n_head": 2, "n_positions": POSITIONS}
        model = GPTJForCausalLM(GPTJConfig(rotary_dim=4, **sizes, **common))
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                num_hidden_layers=layers,
                hidden_size=WIDTH,
                intermediate_size=INNER,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=POSITIONS,
                **common,
            )
        )
    total = sum(p.numel() * DTYPES[dtype].itemsize for p in model.parameters())
    model.to(DTYPES[dtype]).save_pretrained(folder, max_shard_size=total // 2 if sharded else "5GB")
    tokenizer.save_pretrained(folder)
    return folder


# Facts --------------------------------------------------------------------------------------------------------------


def country(index: int) -> str:
    """A made-up name, another one for each index below 4,096."""
    return "".join(_SYLLABLES[index >> shift & 15] for shift in (8, 4, 0)).capitalize()


def make_fact(index: int, target: str | None = None) -> Fact:
    """Fact number `index`: prompt and subject depend on it alone; so does the target, unless one is given."""
    name = country(index)
    return Fact(
        prompt=f"The capital of {name} is",
        target=target or CITIES[index % len(CITIES)],
        subject=name,
        rephrases=(f"The city from which one rules {name} is",),
        unrelated=(Unrelated(f"The language of {name} is", ("Latin", "Greek", "the river's")[index % 3]),),
    )


def make_facts(count: int, start: int = 0) -> list[Fact]:
    return [make_fact(index) for index in range(start, start + count)]


def make_claim(index: int, label: str | None = None) -> Fact:
    """Claim number `index`, for classifiers: the target is its label."""
    name, city = country(index), CITIES[index % len(CITIES)]
    return Fact(
        prompt=f"The capital of {name} is {city}.",
        target=label or LABELS[index % 2],
        subject=name,
        rephrases=(f"{city} is the city from which one rules {name}.",),
        unrelated=(Unrelated(f"The language of {name} is Latin.", LABELS[index // 2 % 2]),),
    )


def make_claims(count: int, start: int = 0) -> list[Fact]:
    return [make_claim(index) for index in range(start, start + count)]


def fact_set(facts: Sequence[Fact], source: str = "facts.jsonl") -> FactSet:
    return FactSet(tuple(facts), source)


def write_facts(path: Path, facts: Sequence[Fact]) -> Path:
    path.write_text("".join(f"{fact.canonical_json()}\n" for fact in facts), "utf-8")
    return path


# Worlds -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """A workspace with one registered model, `tiny`, and one editor for it."""

    workspace: Workspace
    checkpoint: Path

    @contextmanager
    def ledger(self) -> Iterator[tuple[Ledger, ModelRecord]]:
        """The ledger, open for writing, and the model's record."""
        with Ledger.open(self.workspace, writing=True) as ledger:
            with ledger.read() as db:
                model = store.model_named(db, NAME)
            yield ledger, model

    def apply(self, *facts: Fact, editor: str | None = None) -> Applied:
        with self.ledger() as (ledger, model):
            options = ApplyOptions(editor=editor, sample=0, check_old=2)
            return apply_facts(ledger, model, fact_set(facts), options, "malmen apply facts.jsonl")

    def revert(self, entry: str, *fact_numbers: int) -> Reverted:
        with self.ledger() as (ledger, model):
            return revert_entry(ledger, model, entry, fact_numbers, f"malmen revert {entry}")


def make_world(
    folder: Path,
    family: Family = "gpt2",
    *,
    dtype: str = "float32",
    sharded: bool = False,
    training: TrainingConfig | None = TINY_TRAINING,
) -> World:
    """A world in `folder`, which is made: `.malmen` and `model` below it. Without `training` there is no editor."""
    return world_of(save_tiny_model(folder / "model", family, dtype=dtype, sharded=sharded), training=training)


def world_of(
    checkpoint: Path,
    *,
    training: TrainingConfig | None = TINY_TRAINING,
    facts: Callable[[int, int], list[Fact]] = make_facts,
) -> World:
    """A world of a saved model, in the folder above it. Args: facts: number and start to those it is trained on."""
    world = World(create_workspace(checkpoint.parent), checkpoint)
    with Ledger.open(world.workspace, writing=True) as ledger:
        model = register(ledger, NAME, checkpoint, command="malmen models add").model
        if training is not None:
            # Facts from the far end of the names: none of them is one that a test applies.
            train_editor(ledger, model, fact_set(facts(24, 4000)), training)
    return world


def everything(world: World) -> dict[str, str]:
    """Digest of every file of the workspace and the checkpoint, but for SQLite's own scratch files."""
    files = {f"workspace/{name}": digest for name, digest in file_digests(world.workspace.root).items()}
    files |= {f"checkpoint/{name}": digest for name, digest in file_digests(world.checkpoint).items()}
    return {name: digest for name, digest in files.items() if not name.endswith(("-wal", "-shm"))}


def load(folder: Path, *, float64: bool = True, layers: Sequence[str] | None = None) -> LanguageModel:
    """The language model of a folder, in float64 unless told otherwise."""
    return LanguageModel(folder, layers=layers, dtype=torch.float64 if float64 else None)


def start_malmen(world: World, *arguments: str | Path) -> subprocess.Popen[str]:
    """`python -m malmen_cli ARGUMENTS --workspace ...` in a process of its own, its words in pipes."""
    command = [sys.executable, "-m", "malmen_cli", *_words(world, arguments)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_malmen(world: World, *arguments: str | Path) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a whole run."""
    return run_program(Path.cwd(), *_words(world, arguments))


def run_program(folder: Path, *words: str) -> tuple[int, str, str]:
    """The same of any command in a folder, in a process of its own that need not import torch first."""
    server = _server()
    if environment() != server.started_in:
        command = [sys.executable, "-m", "malmen_cli", *words]
        done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=300)
        return done.returncode, done.stdout, done.stderr
    [found] = server.at_once(folder, list(words), seconds=300)
    return found["code"], found["out"], found["err"]


def _words(world: World, arguments: Sequence[str | Path]) -> list[str]:
    return [*map(str, arguments), "--workspace", str(world.workspace.root)]


@cache
def _server() -> Server:
    """What forks this process's commands."""
    server = Server(torch=True)
    atexit.register(server.close)
    return server
