"""The parts of a loaded model that its task decides: how text is read, where logits come from, how it answers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from malmen_cli.errors import UnsupportedModel
from malmen_cli.language_models.families import BY_TYPE, Task
from malmen_cli.language_models.generation import Classifying, Generated, Generation, Seq2SeqGeneration
from malmen_cli.language_models.heads import ClassHead, Head, LanguageHead
from malmen_cli.language_models.last_mlp import last_mlp
from malmen_cli.language_models.loading import task_of
from malmen_cli.language_models.tokenizing import CausalTokenizing, ClassTokenizing, Seq2SeqTokenizing, Tokenizing


class Parts(NamedTuple):
    """What `LanguageModel` is made of besides its weights."""

    task: Task
    tokenizing: Tokenizing
    head: Head
    answers: Callable[[], Callable[..., list[Generated]]]  # makes what answers prompts, see `LanguageModel.generate`


def parts_of(model: Any, tokenizer: Any, device: torch.device, *, chat: bool, end_of_text: bool | None) -> Parts:
    """The parts of a loaded model by its task; `device` is where its inputs go."""
    config, task = model.config, task_of(model.config)
    settings = {"limit": _positions(config), "vocabulary": model.get_input_embeddings().weight.shape[0], "chat": chat}
    tokenizing: Tokenizing
    head: Head
    if task == "classification":
        names = [str(config.id2label[label]) for label in sorted(config.id2label)]
        tokenizing = ClassTokenizing(tokenizer, names=names, end_of_text=bool(end_of_text), **settings)
        head = ClassHead(model)
        return Parts(task, tokenizing, head, partial(Classifying, head, tokenizing, device))
    decoder_start = _decoder_start(model)
    _answer_greedily(model, decoder_start)
    head = LanguageHead(model, last_mlp(model, config.model_type))
    if task == "causal":
        tokenizing = CausalTokenizing(tokenizer, end_of_text=bool(end_of_text), **settings)
        return Parts(task, tokenizing, head, partial(Generation, model, tokenizing, device))
    supervised = tokenizer.eos_token_id is not None if end_of_text is None else end_of_text
    tokenizing = Seq2SeqTokenizing(tokenizer, decoder_start=decoder_start, end_of_text=supervised, **settings)
    return Parts(task, tokenizing, head, partial(Seq2SeqGeneration, model, tokenizing, device))


def _positions(config: Any) -> int | None:
    """How many tokens the model, or its encoder and its decoder each, can read; None where there is no end."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    family = BY_TYPE.get(config.model_type)
    return None if limit is None else limit - (family.reserved_positions if family else 0)


def _decoder_start(model: Any) -> int:
    places = (model.generation_config, model.config)
    tokens = [getattr(place, name, None) for name in ("decoder_start_token_id", "bos_token_id") for place in places]
    return next((token for token in tokens if isinstance(token, int)), 0)


def _answer_greedily(model: Any, decoder_start: int) -> None:
    """Answers are greedy, whatever the folder's own generation settings say."""
    from transformers import GenerationConfig

    if not model.can_generate():
        raise UnsupportedModel("the model cannot generate text", remedy="malmen models families lists those that can.")
    ends = model.generation_config.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends, decoder_start_token_id=decoder_start)
