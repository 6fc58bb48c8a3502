"""The families of language models that malmen knows, as data: what is edited, where rows come from, how text is read.

A model of another type is not refused: its edited layers are found by inspection (`edited_layers.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Task = Literal["causal", "sequence-to-sequence", "classification"]
"""What a model does with a prompt: go on with it, answer it from a decoder of its own, or put it into a class."""

Stack = Literal["encoder", "answer"]
"""Where an edited layer reads: the encoder of an encoder-decoder, or the stack that the answer comes out of."""

MOST_BLOCKS = 6
"""Edited blocks at most, by rule: the paper's choice for GPT-2, GPT-J and BERT (arXiv 2311.04661)."""

CAPTURED: dict[Task, str] = {
    "causal": "answer tokens",
    "sequence-to-sequence": "encoder: all tokens; decoder: answer tokens",
    "classification": "[CLS]",
}
"""Per task the positions that give rows `(u, g)` (arXiv 2311.04661, section 4)."""

TOKENISED: dict[Task, str] = {
    "causal": "prompt and target as one text, split by character offsets",
    "sequence-to-sequence": "prompt to the encoder, target and its end to the decoder",
    "classification": "prompt alone; the target names a class",
}


@dataclass(frozen=True, slots=True)
class Family:
    """Models of one architecture.

    Attributes:
        name: as people call it. model_type: transformers' name of the architecture.
        edited: globs over module paths, one per kind of edited layer; each must fit one layer per block.
        blocks: edited blocks of each stack at most, counted from the last; and never more than two thirds of them.
        stored: orientation of the weights in the files; "d_out, d_in" is nn.Linear's.
        reserved_positions: of `max_position_embeddings`, those that no token can have.
        mlp_apart: the module that holds the edited layer is a whole MLP, which reads each position by itself.
    """

    name: str
    model_type: str
    task: Task
    edited: tuple[str, ...]
    blocks: int = MOST_BLOCKS
    stored: Literal["d_in, d_out", "d_out, d_in"] = "d_out, d_in"
    reserved_positions: int = 0
    mlp_apart: bool = True

    @property
    def captured(self) -> str:
        return CAPTURED[self.task]

    @property
    def tokenised(self) -> str:
        return TOKENISED[self.task]


_DOWN = ("model.layers.*.mlp.down_proj",)
_T5 = (
    "encoder.block.*.layer.1.DenseReluDense.wi",
    "encoder.block.*.layer.1.DenseReluDense.wi_0",
    "encoder.block.*.layer.1.DenseReluDense.wo",
    "decoder.block.*.layer.2.DenseReluDense.wi",
    "decoder.block.*.layer.2.DenseReluDense.wi_0",
    "decoder.block.*.layer.2.DenseReluDense.wo",
)

FAMILIES = (
    Family("GPT-2", "gpt2", "causal", ("transformer.h.*.mlp.c_proj",), stored="d_in, d_out"),
    Family("GPT-J", "gptj", "causal", ("transformer.h.*.mlp.fc_out",)),
    Family("GPT-NeoX, Pythia", "gpt_neox", "causal", ("gpt_neox.layers.*.mlp.dense_4h_to_h",)),
    Family("OPT", "opt", "causal", ("model.decoder.layers.*.fc2",), mlp_apart=False),
    Family("Llama", "llama", "causal", _DOWN),
    Family("Mistral", "mistral", "causal", _DOWN),
    Family("Qwen2, Qwen2.5", "qwen2", "causal", _DOWN),
    Family("Qwen3", "qwen3", "causal", _DOWN),
    Family("Gemma 2", "gemma2", "causal", _DOWN),
    Family("Gemma 3, text", "gemma3_text", "causal", _DOWN),
    Family("Gemma 3, with images", "gemma3", "causal", ("model.language_model.layers.*.mlp.down_proj",)),
    Family("Phi-2", "phi", "causal", ("model.layers.*.mlp.fc2",)),
    Family("Phi-3", "phi3", "causal", _DOWN),
    # The paper edits blocks 22 and 23 of T5-XL's 24, in the encoder and in the decoder; v1.1 has gates, v1.0 has not.
    Family("T5", "t5", "sequence-to-sequence", _T5, blocks=2),
    Family(
        "BART",
        "bart",
        "sequence-to-sequence",
        ("model.encoder.layers.*.fc2", "model.decoder.layers.*.fc2"),
        blocks=3,
        mlp_apart=False,
    ),
    Family("BERT", "bert", "classification", ("bert.encoder.layer.*[0-9].output.dense",), mlp_apart=False),
    Family(
        "RoBERTa",
        "roberta",
        "classification",
        ("roberta.encoder.layer.*[0-9].output.dense",),
        mlp_apart=False,
        reserved_positions=2,  # they are counted from behind the padding token's number, which is 1
    ),
)

BY_TYPE = {family.model_type: family for family in FAMILIES}


def as_dict(family: Family) -> dict[str, object]:
    """A row of the table, for `--json`."""
    return {
        "name": family.name,
        "model_type": family.model_type,
        "task": family.task,
        "edited": list(family.edited),
        "blocks": family.blocks,
        "stored": family.stored,
        "captured": family.captured,
        "tokenised": family.tokenised,
    }
