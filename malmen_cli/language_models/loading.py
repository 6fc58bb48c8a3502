"""Models and tokenizers from local folders, through transformers: offline, quiet, and nothing remote is ever run."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from malmen_cli.errors import UnsupportedModel
from malmen_cli.language_models.families import BY_TYPE, Task
from malmen_cli.language_models.host_memory import prefer_huge_pages
from malmen_cli.language_models.offline import stay_offline

MOST_LAYERS = 4096
"""Of a model that is built at all: a stranger's config.json may speak of as many as would take for ever."""

MOST_BUFFERED = 1 << 30
"""Numbers that a model computes for itself when it is built, such as position tables."""

_ANY_TEXT = "The capital of Peru is Lima."

_AUTO_CLASSES: dict[Task, str] = {
    "causal": "AutoModelForCausalLM",
    "sequence-to-sequence": "AutoModelForSeq2SeqLM",
    "classification": "AutoModelForSequenceClassification",
}


def read_config(folder: Path) -> Any:
    """The folder's configuration, as transformers reads it.

    Raises:
        UnsupportedModel: none, of quantised weights, or of more layers than any model has.
    """
    with in_words(folder):
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if getattr(config, "quantization_config", None):
            raise UnsupportedModel(
                f"{folder}: quantised weights cannot be edited", remedy="Use the unquantised checkpoint."
            )
        if getattr(config.get_text_config(), "num_hidden_layers", 0) > MOST_LAYERS:
            raise UnsupportedModel(
                f"{folder}: its config.json speaks of more than {MOST_LAYERS:,} layers",
                remedy="Ask where it came from; save the model again.",
            )
    return config


def task_of(config: Any) -> Task:
    """What a model of this configuration does with a prompt: as its family says, else as its class is called.

    Raises:
        UnsupportedModel: a classification model whose captured position nobody knows, or one that has lost its head, or
            a model that fills in masks.
    """
    family = BY_TYPE.get(config.model_type)
    names = [str(name) for name in config.architectures or ()]
    classifies = any(name.endswith("ForSequenceClassification") for name in names)
    if classifies and (family is None or family.task != "classification"):
        known = ", ".join(family.name for family in BY_TYPE.values() if family.task == "classification")
        raise UnsupportedModel(
            f"classification models of type '{config.model_type}' cannot be edited",
            remedy=f"Those that can are of {known}; malmen models families lists all.",
        )
    if names and not classifies and (names[0].endswith("ForMaskedLM") or (family and family.task == "classification")):
        raise UnsupportedModel(
            f"{names[0]} answers nothing: it is no causal model, and no classifier",
            remedy="Use a checkpoint that was fine-tuned as a classifier (...ForSequenceClassification).",
        )
    if family is not None:
        return family.task
    return "sequence-to-sequence" if getattr(config, "is_encoder_decoder", False) else "causal"


def empty_model(folder: Path, config: Any) -> nn.Module:
    """The model of a configuration without memory for its weights (on torch's meta device).

    Raises:
        UnsupportedModel: transformers cannot build it.
    """
    with in_words(folder), torch.device("meta"):
        model: nn.Module = auto_class(config).from_config(config, trust_remote_code=False)
    return model


def refuse_absurd(folder: Path, weight_bytes: int) -> None:
    """Build a model without memory for its weights, before one is built with it.

    A stranger's config.json may speak of any size, and transformers makes all of it before it misses the weights.

    Args:
        weight_bytes: what the folder's weight files hold.

    Raises:
        UnsupportedModel: more weights than there are bytes of them, or not a language model at all.
    """
    model = empty_model(folder, read_config(folder))
    weights = sum(parameter.numel() for parameter in model.parameters())
    if weights > weight_bytes or sum(buffer.numel() for buffer in model.buffers()) > MOST_BUFFERED:
        raise UnsupportedModel(
            f"{folder}: its config.json speaks of {weights:,} weights, and its files hold {weight_bytes:,} bytes",
            remedy="Ask where it came from; save the model again.",
        )


def load_model(
    folder: Path, config: Any, dtype: torch.dtype | None, device_map: Mapping[str, str] | None = None
) -> Any:
    """The model with its weights, for inference, in `dtype` or its own.

    Args:
        device_map: module path -> device; None loads all of it on the CPU. What is on `cpu` where others are on a GPU
            is copied to a GPU whenever it is run; what is on `disk` is read for every pass.

    Raises:
        UnsupportedModel: transformers cannot load it, or weights that the model needs are not in the files.
    """
    with in_words(folder):
        model, found = auto_class(config).from_pretrained(
            folder,
            config=config,
            dtype=dtype or "auto",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            device_map=_numbered(device_map),
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise UnsupportedModel(
            f"{folder}: its files lack {len(missing)} of the weights of {type(model).__name__}, such as {missing[0]}",
            remedy="Use a checkpoint of the whole model: of a classifier, one with its head.",
        )
    fuse_activations(model)
    return model.eval().requires_grad_(False)


def _numbered(device_map: Mapping[str, str] | None) -> dict[str, int | str] | None:
    """GPUs by number: the first of them is where accelerate runs what is on no GPU, and names have no first."""
    if device_map is None:
        return None
    return {name: int(device[5:]) if device.startswith("cuda:") else device for name, device in device_map.items()}


def load_tokenizer(folder: Path) -> Any:
    """Raises UnsupportedModel where there is none that transformers can load, or one that makes no tokens of text."""
    with in_words(folder):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # Of a folder without a tokenizer's files transformers makes one that knows no word, for some families.
        ids = tokenizer(_ANY_TEXT, add_special_tokens=False)["input_ids"]
        if not str(tokenizer.decode(ids, skip_special_tokens=True)).strip():
            raise UnsupportedModel(
                f"{folder} has no tokenizer: nothing comes of text",
                remedy="Put the tokenizer's files beside the weights: tokenizer.json, tokenizer_config.json.",
            )
        return tokenizer


@contextmanager
def in_words(folder: Path) -> Iterator[None]:
    """transformers, quiet and offline: nothing is fetched, nothing remote is run, the folder alone counts.

    Whatever it raises becomes UnsupportedModel: of a stranger's folder that may be anything.
    """
    stay_offline()
    prefer_huge_pages()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    for name in ("transformers", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnsupportedModel:
        raise
    except Exception as error:
        raise UnsupportedModel(
            f"{folder}: transformers cannot load it as a language model: {error}".splitlines()[0],
            remedy="A folder with config.json, tokenizer.json and model.safetensors is needed.",
        ) from None


def auto_class(config: Any) -> Any:
    """transformers' Auto class of a configuration's task. Raises UnsupportedModel where there is none."""
    import transformers

    return getattr(transformers, _AUTO_CLASSES[task_of(config)])


def fuse_activations(model: nn.Module) -> None:
    """Swap GPT-2's hand-written tanh GELU for torch's: the same function in one pass over memory instead of eight."""
    from transformers.activations import NewGELUActivation

    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, nn.GELU(approximate="tanh"))
