"""A loaded causal model: its edited layers, logits at supervised positions, captured rows, short answers."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from malmen_cli.editing.capture import capturing
from malmen_cli.editing.editor import LayerShape
from malmen_cli.errors import UnsupportedModel, WrongBase
from malmen_cli.language_models.families import default_layers, matching, rows_act_right
from malmen_cli.language_models.generation import Generated, Generation
from malmen_cli.language_models.tokenizing import Batch, Tokenizing, Tokens

MOST_LAYERS = 4096
"""Of a model that is built at all: a stranger's config.json may speak of as many as would take for ever."""

MOST_BUFFERED = 1 << 30
"""Numbers that a model computes for itself when it is built, such as position tables."""


@dataclass(frozen=True)
class EditedLayer:
    """An edited linear layer of the loaded model.

    Attributes:
        name: module path. module: the layer. transposed: its weight is stored (d_out, d_in), as nn.Linear does.
    """

    name: str
    module: nn.Module
    transposed: bool

    @property
    def weight(self) -> Tensor:
        """The weight with rows acting on the right, (d_in, d_out): a view of the parameter."""
        weight = self.module.weight.data
        assert isinstance(weight, Tensor)
        return weight.T if self.transposed else weight

    @property
    def weight_grad(self) -> Tensor:
        grad = self.module.weight.grad
        assert isinstance(grad, Tensor)
        return grad.T if self.transposed else grad

    @property
    def shape(self) -> LayerShape:
        d_in, d_out = self.weight.shape
        return LayerShape(self.name, d_in, d_out)


@dataclass(frozen=True)
class Rows:
    """Captured rows of some texts, per edited layer, text after text in the order they were given.

    Attributes:
        keys: per layer (n, d_in); value_grads: per layer (n, d_out), empty where only keys were asked for.
        counts: rows of each text.
    """

    keys: list[Tensor]
    value_grads: list[Tensor]
    counts: list[int]


class LanguageModel:
    """Loads a local folder through transformers' Auto classes, in its own dtype, frozen.

    Args:
        folder: config, tokenizer and safetensors weights. layers: globs over module paths; None takes the preset.
        device: torch device. dtype: None keeps the checkpoint's own.

    Raises:
        UnsupportedModel: not a causal model of this folder layout, or layers that cannot be edited.
    """

    def __init__(
        self,
        folder: Path,
        *,
        layers: Sequence[str] | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model, tokenizer = _load(folder, dtype)
        self.model.to(self.device).eval().requires_grad_(False)
        config = self.model.config
        self.model_type: str = config.model_type
        limit = getattr(config, "max_position_embeddings", None)
        self.tokenizing = Tokenizing(tokenizer, limit, self.model.get_input_embeddings().weight.shape[0])
        modules = dict(self.model.named_modules())
        names = matching(layers, list(modules)) if layers else default_layers(self.model_type, list(modules))
        self.layers = tuple(EditedLayer(n, modules[n], not rows_act_right(modules[n])) for n in names)
        self.head: nn.Module = self.model.get_output_embeddings()
        if any(layer.module is self.head for layer in self.layers):
            raise UnsupportedModel("the output head cannot be edited", remedy="Name other layers with --layers.")

    @property
    def shapes(self) -> list[LayerShape]:
        return [layer.shape for layer in self.layers]

    @property
    def dtype(self) -> torch.dtype:
        return self.layers[0].weight.dtype

    # Weights ----------------------------------------------------------------------------------------------------

    def weights(self) -> list[Tensor]:
        """Copies of the edited layers' weights, each (d_in, d_out)."""
        return [layer.weight.clone() for layer in self.layers]

    @torch.no_grad()
    def set_weights(self, weights: Sequence[Tensor]) -> None:
        """Put (d_in, d_out) weights into the edited layers, rounded to the model's dtype."""
        for layer, weight in zip(self.layers, weights, strict=True):
            layer.weight.copy_(weight)

    def parameter(self, layer_name: str) -> Tensor:
        """The stored weight of a module in the checkpoint's own orientation."""
        weight: Tensor = self.model.get_submodule(layer_name).weight.data
        return weight

    @torch.no_grad()
    def overlay(self, tensors: Mapping[str, Tensor]) -> None:
        """Put base tensors, by module path and in the checkpoint's own orientation, over what the files held."""
        for name, tensor in tensors.items():
            parameter = self.parameter(name)
            if parameter.shape != tensor.shape:
                raise WrongBase(
                    f"{name}: the base tensor is {tuple(tensor.shape)}, the model's {tuple(parameter.shape)}"
                )
            parameter.copy_(tensor)

    @contextmanager
    def weight_gradients(self) -> Iterator[None]:
        """Within, a backward pass fills `weight_grad` of the edited layers, and of nothing else."""
        parameters = [layer.module.weight for layer in self.layers]
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)
                parameter.grad = None

    # Passes -----------------------------------------------------------------------------------------------------

    def batches(self, texts: Sequence[Tokens], batch_tokens: int) -> Iterator[Batch]:
        """Padded batches on the model's device."""
        for batch in self.tokenizing.batches(texts, batch_tokens):
            yield batch.to(self.device)

    def logits(self, batch: Batch) -> Tensor:
        """Logits (n, vocabulary) at the positions that predict supervised tokens, and nowhere else."""
        return self._forward(batch)[0]

    def logits_and_hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The same, with the final hidden states (n, width) that the head turned into them."""
        return self._forward(batch)

    def head_logits(self, hidden: Tensor) -> Tensor:
        """Logits (n, vocabulary) of final hidden states, as the model's own forward gives them."""
        logits: Tensor = self.head(hidden)
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        hidden: list[Tensor] = []

        def gather(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # The head is by far the widest layer: it sees the supervised positions only.
            chosen = args[0].reshape(-1, args[0].shape[-1])[batch.positions][None]
            hidden.append(chosen[0])
            return (chosen, *args[1:])

        handle = self.head.register_forward_pre_hook(gather)
        try:
            out = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        finally:
            handle.remove()
        return out.logits[0], hidden[0]

    def capture(
        self, texts: Sequence[Tokens], *, gradients: bool = True, batch_tokens: int = 1024
    ) -> Iterator[tuple[Batch, Rows]]:
        """Rows of the texts' supervised positions, batch by batch: keys, and gradients of each text's own mean loss.

        The loss is the mean cross-entropy over a text's target tokens, summed over texts, so that a text's gradient
        does not depend on the texts beside it.
        """
        modules = [layer.module for layer in self.layers]
        for batch in self.batches(texts, batch_tokens):
            with capturing(modules, gradients=gradients) as capture:
                logits = self.logits(batch)
                grads = []
                if gradients:
                    losses = nn.functional.cross_entropy(wide(logits), batch.labels, reduction="none")
                    grads = [_at(g, batch) for g in capture.value_grads((losses / batch.count).sum())]
            keys = [_at(u, batch) for u in capture.keys]
            counts = torch.bincount(batch.text, minlength=len(batch.rows)).tolist()
            yield batch, Rows(keys, grads, counts)

    @torch.no_grad()
    def capture_reference(
        self, texts: Sequence[Tokens], *, batch_tokens: int = 1024
    ) -> Iterator[tuple[Batch, list[Tensor], Tensor]]:
        """Batch by batch the keys per layer and the final hidden states at the supervised positions."""
        modules = [layer.module for layer in self.layers]
        for batch in self.batches(texts, batch_tokens):
            with capturing(modules, gradients=False) as capture:
                _, hidden = self.logits_and_hidden(batch)
            yield batch, [_at(u, batch) for u in capture.keys], hidden

    @torch.no_grad()
    def predictions(self, texts: Sequence[Tokens], *, batch_tokens: int = 1024) -> list[list[int]]:
        """Per text the model's likeliest token for each supervised one, the target's earlier tokens given."""
        found: list[list[int]] = [[] for _ in texts]
        for batch in self.batches(texts, batch_tokens):
            best = self.logits(batch).argmax(1).tolist()
            for i, token in zip(batch.text.tolist(), best, strict=True):
                found[batch.rows[i]].append(token)
        return found

    @torch.no_grad()
    def answer(self, prompt: str, new_tokens: int) -> str:
        """The model's greedy continuation: at most `new_tokens` tokens, up to its own stop or a line end."""
        tokenizer: Any = self.tokenizing.tokenizer
        inputs = tokenizer(prompt, return_tensors="pt").to(self.device)
        out = self.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            pad_token_id=self.tokenizing.padding,
        )
        text: str = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return text.strip().split("\n")[0]

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int | Sequence[int],
        *,
        batch_tokens: int = 1024,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Generated]:
        """Per prompt the greedy continuation up to its natural end: the model's own end of text, or a line end.

        Prompts of one length share a batch, so that nothing is padded and each gets what it would get alone.

        Args:
            max_new_tokens: the cap, one for all or one per prompt; the model's positions may leave less room.
            batch_tokens: most tokens, read and new, of a batch. progress: called with prompts done and prompts in all.
        """
        generation = Generation(self.model, self.tokenizing)
        return generation(prompts, max_new_tokens, batch_tokens=batch_tokens, progress=progress)


def wide(logits: Tensor) -> Tensor:
    """Logits in at least float32, the dtype that losses are taken in."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _at(x: Tensor, batch: Batch) -> Tensor:
    return x.reshape(-1, x.shape[-1])[batch.positions]


def refuse_absurd(folder: Path, weight_bytes: int) -> None:
    """Build a model without memory for its weights, before one is built with it.

    A stranger's config.json may speak of any size, and transformers makes all of it before it misses the weights.

    Args:
        weight_bytes: what the folder's weight files hold.

    Raises:
        UnsupportedModel: more weights than there are bytes of them, or not a causal model at all.
    """
    with _in_words(folder):
        from transformers import AutoModelForCausalLM

        config = _config(folder)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    weights = sum(parameter.numel() for parameter in model.parameters())
    if weights > weight_bytes or sum(buffer.numel() for buffer in model.buffers()) > MOST_BUFFERED:
        raise UnsupportedModel(
            f"{folder}: its config.json speaks of {weights:,} weights, and its files hold {weight_bytes:,} bytes",
            remedy="Ask where it came from; save the model again.",
        )


def _load(folder: Path, dtype: torch.dtype | None) -> tuple[Any, Any]:
    with _in_words(folder):
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=_config(folder),
            dtype=dtype or "auto",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # Answers are greedy, whatever the folder's own generation settings say.
    model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
    _fuse_activations(model)
    return model, tokenizer


def _config(folder: Path) -> Any:
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


@contextmanager
def _in_words(folder: Path) -> Iterator[None]:
    """transformers, quiet and offline: nothing is fetched, nothing remote is run, the folder alone counts.

    Whatever it raises becomes UnsupportedModel: of a stranger's folder that may be anything.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnsupportedModel:
        raise
    except Exception as error:
        raise UnsupportedModel(
            f"{folder}: transformers cannot load it as a causal model: {error}".splitlines()[0],
            remedy="A folder with config.json, tokenizer.json and model.safetensors is needed.",
        ) from None


def _fuse_activations(model: nn.Module) -> None:
    """Swap GPT-2's hand-written tanh GELU for torch's: the same function in one pass over memory instead of eight."""
    from transformers.activations import NewGELUActivation

    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(parent, name, nn.GELU(approximate="tanh"))
