"""A tiny real model of every family: transformers' own class, made by its configuration, with that family's tokenizer.

Weights are random, and large enough that every layer matters. Texts are longer than the sliding windows; what is tied,
biased, capped or shared in a family's real checkpoints is so here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import family_tokenizers as tokenizers
import torch
from tiny_models import DTYPES, INNER, LAYERS, POSITIONS, WIDTH

Task = Literal["causal", "sequence-to-sequence", "classification"]
AUTO_CLASSES: dict[Task, str] = {
    "causal": "AutoModelForCausalLM",
    "sequence-to-sequence": "AutoModelForSeq2SeqLM",
    "classification": "AutoModelForSequenceClassification",
}


@dataclass(frozen=True)
class FamilyModel:
    """How to make one.

    Attributes:
        model_class: its name in transformers. settings: of its configuration; vocabulary and special tokens come from
            the tokenizer. edited: globs over module paths, one per kind of layer that is edited by default, and
        blocks: how many of each, the last ones. parts: the configurations of its parts, and generation: settings of
        its generation, where there are any. own_head: its files hold an untied head, whatever its class would tie.
    """

    model_class: str
    tokenizer: Callable[[], Any]
    settings: Mapping[str, Any]
    edited: tuple[str, ...]
    task: Task = "causal"
    blocks: int = 2
    parts: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    own_head: bool = False


_SCALE = {"initializer_range": 0.3}
_GPT2 = {"n_layer": LAYERS, "n_embd": WIDTH, "n_inner": INNER, "n_head": 2, "n_positions": POSITIONS} | _SCALE
_SIZES = {
    "num_hidden_layers": LAYERS,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
} | _SCALE
_LLAMA = _SIZES | {"num_key_value_heads": 1, "tie_word_embeddings": False}
_TIED = {"tie_word_embeddings": True}
_GEMMA = _LLAMA | _TIED | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8}
_MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_T5 = {"num_layers": LAYERS, "num_decoder_layers": LAYERS, "d_model": WIDTH, "d_ff": INNER, "d_kv": 8, "num_heads": 2}
_BART = {
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "d_model": WIDTH,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
    "init_std": 0.3,
}
# As published with BART: of it, answers keep what every target begins with, and are greedy all the same.
_BEAMS = {"forced_bos_token_id": 0, "num_beams": 4, "no_repeat_ngram_size": 3, "early_stopping": True}
_OPT = {"ffn_dim": INNER, "word_embed_proj_dim": WIDTH, "init_std": 0.3}
_VISION = {
    "num_hidden_layers": 1,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 1,
    "image_size": 4,
    "patch_size": 2,
}
# Many checkpoints have more embeddings than their tokenizer has tokens.
_MORE_ROWS = {"vocab_size": 448}
_DOWN = ("model.layers.*.mlp.down_proj",)
_T5_STACKS = ("encoder.block.*.layer.1.DenseReluDense", "decoder.block.*.layer.2.DenseReluDense")


def _t5_layers(*kinds: str) -> tuple[str, ...]:
    return tuple(f"{stack}.{kind}" for stack in _T5_STACKS for kind in kinds)


FAMILIES: dict[str, FamilyModel] = {
    "gpt2": FamilyModel("GPT2LMHeadModel", tokenizers.gpt2, _GPT2, ("transformer.h.*.mlp.c_proj",)),
    "gptj": FamilyModel("GPTJForCausalLM", tokenizers.gpt2, _GPT2 | {"rotary_dim": 4}, ("transformer.h.*.mlp.fc_out",)),
    "gpt_neox": FamilyModel(
        "GPTNeoXForCausalLM", tokenizers.gpt_neox, _SIZES | _MORE_ROWS, ("gpt_neox.layers.*.mlp.dense_4h_to_h",)
    ),
    "opt": FamilyModel("OPTForCausalLM", tokenizers.opt, _SIZES | _OPT, ("model.decoder.layers.*.fc2",)),
    "llama": FamilyModel("LlamaForCausalLM", tokenizers.llama2, _LLAMA, _DOWN),
    "llama3": FamilyModel("LlamaForCausalLM", tokenizers.llama3, _LLAMA | _TIED, _DOWN),
    "mistral": FamilyModel("MistralForCausalLM", tokenizers.llama2, _LLAMA | {"sliding_window": 8}, _DOWN),
    "qwen2": FamilyModel(
        "Qwen2ForCausalLM", tokenizers.qwen, _LLAMA | {"tie_word_embeddings": True} | _MORE_ROWS, _DOWN
    ),
    "qwen3": FamilyModel("Qwen3ForCausalLM", tokenizers.qwen, _LLAMA | {"head_dim": 8}, _DOWN),
    "gemma2": FamilyModel("Gemma2ForCausalLM", tokenizers.gemma, _GEMMA, _DOWN),
    "gemma3_text": FamilyModel("Gemma3ForCausalLM", tokenizers.gemma, _GEMMA | _MIXED, _DOWN),
    "gemma3": FamilyModel(
        "Gemma3ForConditionalGeneration",
        tokenizers.gemma,
        {"mm_tokens_per_image": 4, "boi_token_index": 400, "eoi_token_index": 401, "image_token_index": 402},
        ("model.language_model.layers.*.mlp.down_proj",),
        parts={"text_config": _GEMMA | _MIXED | _MORE_ROWS, "vision_config": _VISION},
    ),
    "phi": FamilyModel(
        "PhiForCausalLM",
        tokenizers.gpt2,
        _SIZES | {"partial_rotary_factor": 0.5},
        ("model.layers.*.mlp.fc2",),
    ),
    "phi3": FamilyModel("Phi3ForCausalLM", tokenizers.phi3, _LLAMA | {"sliding_window": 8}, _DOWN),
    "t5": FamilyModel("T5ForConditionalGeneration", tokenizers.t5, _T5, _t5_layers("wi", "wo"), "sequence-to-sequence"),
    "t5_gated": FamilyModel(
        "T5ForConditionalGeneration",
        tokenizers.t5,
        _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        _t5_layers("wi_0", "wo"),
        "sequence-to-sequence",
        own_head=True,
    ),
    "bart": FamilyModel(
        "BartForConditionalGeneration",
        tokenizers.roberta,
        _BART,
        ("model.encoder.layers.*.fc2", "model.decoder.layers.*.fc2"),
        "sequence-to-sequence",
        generation=_BEAMS,
    ),
    "bert": FamilyModel(
        "BertForSequenceClassification",
        tokenizers.bert,
        _SIZES | {"num_labels": 1},
        ("bert.encoder.layer.[0-9].output.dense",),
        "classification",
    ),
    "roberta": FamilyModel(
        "RobertaForSequenceClassification",
        tokenizers.roberta,
        _SIZES | {"num_labels": 1, "max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1},
        ("roberta.encoder.layer.[0-9].output.dense",),
        "classification",
    ),
}

# Of no row of malmen's table: found by looking at the model, or refused in words.
INSPECTED = {
    "stablelm": FamilyModel("StableLmForCausalLM", tokenizers.gpt_neox, _LLAMA, _DOWN),
    "mt5": FamilyModel(
        "MT5ForConditionalGeneration",
        tokenizers.t5,
        _T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        _t5_layers("wo"),
        "sequence-to-sequence",
        own_head=True,
    ),
    "olmo2": FamilyModel("Olmo2ForCausalLM", tokenizers.gpt_neox, _LLAMA, _DOWN),
}
REFUSED = {
    "mixtral": FamilyModel(
        "MixtralForCausalLM", tokenizers.llama2, _LLAMA | {"num_local_experts": 2, "num_experts_per_tok": 1}, ()
    ),
    # As in the published ones: the heads together are twice as wide as the model, the experts narrower than it.
    "qwen3_moe": FamilyModel(
        "Qwen3MoeForCausalLM",
        tokenizers.qwen,
        _LLAMA | {"head_dim": WIDTH, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": WIDTH // 2},
        (),
    ),
}


def every_model() -> dict[str, FamilyModel]:
    return FAMILIES | INSPECTED | REFUSED


def save_family_model(folder: Path, name: str, *, dtype: str = "float32", seed: int = 0) -> Path:
    """Save a tiny model of a family with its tokenizer; the same bytes every time.

    Args:
        name: of `every_model`. dtype: float32, bfloat16 or float16.
    """
    import transformers
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    family = every_model()[name]
    tokenizer = family.tokenizer()
    model_class = getattr(transformers, family.model_class)
    config = model_class.config_class(**_settings(family, tokenizer))
    torch.manual_seed(seed)
    model = model_class(config)
    if family.generation:
        model.generation_config.update(**family.generation)
    if family.own_head:
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.to(DTYPES[dtype]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def empty_model(name: str, **settings: Any) -> Any:
    """The same model without memory for its weights, other settings of its configuration given."""
    import transformers

    family = every_model()[name]
    model_class = getattr(transformers, family.model_class)
    config = model_class.config_class(**(_settings(family, family.tokenizer()) | settings))
    with torch.device("meta"):
        return model_class(config)


def _settings(family: FamilyModel, tokenizer: Any) -> dict[str, Any]:
    """The configuration's settings: its own, and those that a tokenizer decides, as real checkpoints have them."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    special = {name: getattr(tokenizer, name) for name in names}
    decided = {"vocab_size": len(tokenizer)} | special
    if family.task == "sequence-to-sequence":
        first = tokenizer.pad_token_id if tokenizer.bos_token_id is None else tokenizer.eos_token_id
        decided |= {"decoder_start_token_id": first}
    if "text_config" in family.parts:
        text = {**decided, **family.parts["text_config"]}
        return {**family.settings, **family.parts, "text_config": text, **special}
    return {**decided, **family.settings}
