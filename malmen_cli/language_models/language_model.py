"""A loaded language model: its edited layers, logits at supervised positions, captured rows, free answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from malmen_cli.editing.capture import capturing
from malmen_cli.editing.editor import LayerShape
from malmen_cli.errors import UnsupportedModel, UsageError, WrongBase
from malmen_cli.language_models.edited_layers import EditedLayer, edited_layers
from malmen_cli.language_models.generation import Generated
from malmen_cli.language_models.label_losses import cross_entropy, likeliest, reference_grads
from malmen_cli.language_models.loading import in_words, load_model, load_tokenizer, read_config
from malmen_cli.language_models.lower_blocks import LowerBlocks, lower_blocks
from malmen_cli.language_models.placement import Placement, place, require_room_for
from malmen_cli.language_models.tasks import Parts, parts_of
from malmen_cli.language_models.texts import Batch, Positions, Tokens, tokens_at_once

TEMPLATES = "additional_chat_templates"

FAR, LARGEST_STRETCH = 100.0, 1000.0
"""Logits beyond any cap, and what references are multiplied by at most to get there."""

HALF_SCALE = 1024.0
"""What losses are multiplied by where gradients are float16, whose smallest number is 6e-8; a power of two."""


@dataclass(frozen=True)
class Rows:
    """Captured rows of some texts, per edited layer, text after text in the order they were given.

    Attributes:
        keys: per layer (n, d_in). value_grads: per layer (n, d_out), of a float16 model in float32; empty where only
            keys were asked for.
        counts: per layer the rows of each text.
        lower_states: (tokens, width), what the first edited block read; None where it was not asked for.
    """

    keys: list[Tensor]
    value_grads: list[Tensor]
    counts: list[list[int]]
    lower_states: Tensor | None = None


class KeptStates(Protocol):
    """Hidden states that an earlier pass has left of some texts."""

    def __contains__(self, text: Tokens) -> bool: ...

    def of(self, texts: Sequence[Tokens]) -> Tensor:
        """(tokens, width), text after text."""
        ...


KeepStates = Callable[[Sequence[Tokens], Tensor], None]
"""Takes texts and their hidden states (tokens, width), text after text."""


class LanguageModel:
    """Loads a local folder through transformers' Auto classes, in its own dtype, frozen.

    Args:
        folder: config, tokenizer and safetensors weights. layers: globs over module paths; None takes the family's, or
            those found by inspection.
        device: cpu, cuda, cuda:N, mps, auto, or where `place` has put it. dtype: None keeps the checkpoint's own.
        needs: bytes that the work takes besides the weights, by what they are for.
        chat_template: prompts are a user's turn. end_of_text: whether the end of an answer is supervised too; None: of
            a sequence-to-sequence model it is, as in its own training.

    Raises:
        UnsupportedModel: not a language model of this folder layout, or layers that cannot be edited.
        UsageError: a tokenizer without offsets, or without the chat template or the end token that is asked for.
        NoRoom: less memory is free than the weights and `needs` take; nothing was loaded.
    """

    def __init__(
        self,
        folder: Path,
        *,
        layers: Sequence[str] | None = None,
        device: str | Placement = "cpu",
        dtype: torch.dtype | None = None,
        needs: Mapping[str, int] | None = None,
        chat_template: bool = False,
        end_of_text: bool | None = None,
    ) -> None:
        found = device if isinstance(device, Placement) else place(folder, device, layers=layers, dtype=dtype)
        self._folder, self.device = folder, torch.device(found.device)
        config = read_config(folder)
        require_room_for(folder, config, found, dtype, needs or {})
        # Weights of a model on a GPU go there as they are read, and need no room in the machine's own memory.
        whole = None if self.device.type == "cpu" else {"": found.device}
        self.model: Any = load_model(folder, config, dtype, found.device_map or whole)
        self.model_type: str = config.model_type
        if chat_template and (folder / TEMPLATES).exists():
            # It would win over the one that the ledger knows, and a manifest lists no folders.
            raise UsageError(f"{folder} has a folder {TEMPLATES}", remedy="Keep its template as chat_template.jinja.")
        tokenizer = load_tokenizer(folder)
        parts: Parts = parts_of(self.model, tokenizer, self.device, chat=chat_template, end_of_text=end_of_text)
        self.task, self.tokenizing, self.head, self._answers = parts
        self.layers: tuple[EditedLayer, ...] = edited_layers(self.model, self.model_type, layers)
        if any(layer.module is getattr(self.head, "module", None) for layer in self.layers):
            raise UnsupportedModel("the output head cannot be edited", remedy="Name other layers with --layers.")
        for layer in self.layers:
            _require_resident(layer.name, layer.weight)

    @property
    def shapes(self) -> list[LayerShape]:
        return [layer.shape for layer in self.layers]

    @property
    def dtype(self) -> torch.dtype:
        return self.layers[0].weight.dtype

    @property
    def batch_tokens(self) -> int:
        """Padded tokens of a batch where a call names no number."""
        return tokens_at_once(self.model.dtype)

    @property
    def loss_scale(self) -> float:
        """What a loss is multiplied by before it is differentiated, and its gradients are divided by."""
        return HALF_SCALE if self.model.dtype == torch.float16 else 1.0

    def autocast(self) -> torch.autocast:
        """For a hyper-network's products on this model's rows: in bfloat16 where its own are; sums stay float32."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16, cache_enabled=False
        )

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
            _require_resident(name, parameter)
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

    def batches(self, texts: Sequence[Tokens], batch_tokens: int | None) -> Iterator[Batch]:
        """Padded batches on the model's device."""
        for batch in self.tokenizing.batches(texts, batch_tokens or self.batch_tokens):
            yield batch.to(self.device)

    def logits(self, batch: Batch, lower_states: Tensor | None = None) -> Tensor:
        """Logits (n, classes) at the positions that predict labels, and nowhere else; as `references` takes a batch."""
        return self.head.logits_of(self.references(batch, lower_states))

    def references(self, batch: Batch, lower_states: Tensor | None = None) -> Tensor:
        """What the head's `logits_of` takes, (n, width), of the positions that predict labels.

        Args:
            lower_states: (tokens, width) as `lower_states` gave them, to start from; None runs every block.
        """
        resumed: AbstractContextManager[None] = nullcontext()
        if lower_states is not None and self.lower is not None:
            resumed = self.lower.resumed(batch.padded(lower_states))
        plain = torch.is_grad_enabled() and attends_plainly(self.device, self.dtype)
        with resumed, sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            return self.head.references(batch)

    @cached_property
    def lower(self) -> LowerBlocks | None:
        """The blocks that an edit leaves as they are; None where there are none, or where the model's blocks hand on
        more than one hidden state for each token, so that none can be left out."""
        found = lower_blocks(self.model, self.layers)
        # What a decoder's blocks make depends on the encoder's text too, and on another number of tokens.
        decodes = self.task == "sequence-to-sequence" and any(layer.stack == "answer" for layer in self.layers)
        if found is None or decodes:
            return None
        length = min(8, self.tokenizing.limit or 8)
        labels = (0,) if self.task == "classification" else (0, 0)
        texts = [Tokens(self.trial_tokens(length)[-n:], labels) for n in (length, length // 2 + 1)]
        [batch] = self.batches(texts, 2 * length)
        alone = found.can_be_left_out(batch, lambda: self.logits(batch), self.lower_width)
        return found if alone else None

    def trial_tokens(self, count: int) -> tuple[int, ...]:
        """Tokens to try the model on, as unlike as there are; none is padding, whose embedding is 0 in many models: all
        states would be 0, and whatever is done to them looks right."""
        embeddings = self.model.get_input_embeddings()
        padding = {self.tokenizing.padding, getattr(embeddings, "padding_idx", None)}
        return tuple(islice(cycle(token for token in range(len(embeddings.weight)) if token not in padding), count))

    @property
    def lower_width(self) -> int:
        """Numbers of a hidden state between blocks."""
        width: int = self.model.config.get_text_config().hidden_size
        return width

    @torch.no_grad()
    def lower_states(
        self, texts: Sequence[Tokens], *, batch_tokens: int | None = None
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Batch by batch the hidden states (tokens, width) that the first edited block reads; no block above is run.

        Only where `lower` is there.
        """
        assert self.lower is not None
        for batch in self.batches(texts, batch_tokens):
            states = self.lower.reach(partial(self.head.references, batch))
            yield batch, batch.packed(states).to(self.device)

    def capture(
        self,
        texts: Sequence[Tokens],
        *,
        gradients: bool = True,
        batch_tokens: int | None = None,
        lower: bool = False,
        everywhere: bool = False,
    ) -> Iterator[tuple[Batch, Rows]]:
        """Rows of the texts, batch by batch: keys, and gradients of each text's own mean loss.

        With `lower`, the hidden states that the first edited block reads besides. With `everywhere`, rows of every
        token whose value gradient is not zero, and not just of those that predict labels.

        The loss is the mean cross-entropy over a text's labels, summed over texts, so that a text's gradient does not
        depend on the texts beside it.
        """
        spread = self.spread(everywhere)
        for batch in self.batches(texts, batch_tokens):
            yield batch, self._captured(batch, spread, gradients=gradients, lower=lower)[0]

    def spread(self, everywhere: bool = True) -> tuple[bool, ...]:
        """Per edited layer whether rows are those of all tokens that its stack reads, where every row is wanted whose
        value gradient is not zero: in the block that the answer comes out of, no other token has one."""
        return self._reached if everywhere else (False,) * len(self.layers)

    @cached_property
    def _reached(self) -> tuple[bool, ...]:
        """Per edited layer whether a loss reaches tokens that predict no label: tried on one text."""
        length = min(8, self.tokenizing.limit or 8)
        decoded = self.trial_tokens(3) if self.task == "sequence-to-sequence" else ()
        [batch] = self.batches([Tokens(self.trial_tokens(length), (0,), decoded)], 1)
        with capturing([layer.module for layer in self.layers]) as capture:
            references = self.references(batch)
            grads = capture.value_grads(references, self._slopes(batch, references))
        found = []
        for layer, grad in zip(self.layers, grads, strict=True):
            touched = grad.flatten(0, -2).abs().amax(1) > 0
            found.append(layer.stack == "answer" and int(touched.sum()) > len(batch.labels))
        return tuple(found)

    @torch.no_grad()
    def capture_reference(
        self, texts: Sequence[Tokens], *, batch_tokens: int | None = None, lower: bool = False
    ) -> Iterator[tuple[Batch, Rows, Tensor]]:
        """Batch by batch the keys per layer, and the references (n, width) that `head.logits_of` takes.

        With `lower`, the hidden states that the first edited block reads besides.
        """
        narrow = self.spread(False)
        for batch in self.batches(texts, batch_tokens):
            yield batch, *self._captured(batch, narrow, gradients=False, lower=lower)

    def _captured(self, batch: Batch, spread: Sequence[bool], *, gradients: bool, lower: bool) -> tuple[Rows, Tensor]:
        """Rows and references of one batch. What the pass takes for all of its tokens is let go of before the next."""
        places = [batch.places(layer.stack, wide) for layer, wide in zip(self.layers, spread, strict=True)]
        modules = [layer.module for layer in self.layers]
        grads = []
        with capturing(modules, gradients=gradients) as capture, self._recorded(lower) as states:
            references = self.references(batch)
            if gradients:
                of_outputs = capture.value_grads(references, self._slopes(batch, references))
                grads = [self._at(g, p) for g, p in zip(of_outputs, places, strict=True)]
        keys = [self._at(u, p) for u, p in zip(capture.keys, places, strict=True)]
        if self.loss_scale != 1:
            grads = [g.float() / self.loss_scale for g in grads]
        return Rows(keys, grads, [p.counts for p in places], self._packed(batch, states)), references.detach()

    def _slopes(self, batch: Batch, references: Tensor) -> Tensor:
        """By the references (n, width), the scaled gradients of each text's mean cross-entropy, summed over texts."""
        losses = cross_entropy(batch.labels)
        return reference_grads(self.head, references, losses, batch.count, scale=self.loss_scale)[1]

    def _recorded(self, lower: bool) -> AbstractContextManager[list[Tensor]]:
        return self.lower.recorded() if lower and self.lower is not None else nullcontext([])

    def _packed(self, batch: Batch, states: list[Tensor]) -> Tensor | None:
        return batch.packed(states[0]).to(self.device) if states else None

    def _at(self, x: Tensor, places: Positions) -> Tensor:
        """Of one value per token those at some positions, on the model's device; the last MLP sees those alone."""
        flat = x.reshape(-1, x.shape[-1])
        if len(flat) == len(places.flat):  # all positions are wanted, in this order
            return flat.to(self.device)
        return flat[places.flat.to(flat.device)].to(self.device)

    @torch.no_grad()
    def require_usable(self) -> None:
        """Ask the model one small question, and see that every edited layer is run on its stack's tokens.

        Raises:
            UnsupportedModel: one is not, the head's logits are not those of the model, or they are no numbers.
        """
        length = min(8, self.tokenizing.limit or 8)
        *read, other = self.trial_tokens(length + 1)
        decoded = tuple(read[:3]) if self.task == "sequence-to-sequence" else ()
        # Every token that the answering stack reads predicts a label, so that its last MLP sees all of them.
        labels = (0,) if self.task == "classification" else (0,) * len(decoded or range(length))
        text = Tokens(tuple(read), labels, decoded)
        modules = [layer.module for layer in self.layers]
        with in_words(self._folder):
            [batch] = self.batches([text], 1)
            with capturing(modules, gradients=False) as capture:
                logits, references = self.head.forward(batch)
            # The same but for the last token that the answering stack reads.
            last = {"decoder_input_ids" if decoded else "input_ids": (*(decoded or read)[:-1], other)}
            moved, _ = self.head.forward(next(self.batches([replace(text, **last)], 1)))
        if logits.isnan().any():
            raise UnsupportedModel(
                f"{self._folder} answers with logits that are no numbers",
                remedy="Use a checkpoint whose weights are finite, and within the range of their dtype.",
            )
        if len(labels) > 1 and not _alike(moved[0], logits[0]):
            raise UnsupportedModel(
                f"a model of type '{self.model_type}' reads what follows the token that it predicts",
                remedy="Use a causal or a sequence-to-sequence model: malmen models families lists those it knows.",
            )
        for layer, keys, calls in zip(self.layers, capture.keys, capture.calls, strict=True):
            tokens = len(text.decoder_input_ids if decoded and layer.stack == "answer" else text.input_ids)
            if calls != 1 or keys.numel() != tokens * layer.shape.d_in:
                raise UnsupportedModel(
                    f"{layer.name} is not run once on every token that the model reads",
                    remedy="Name layers of the MLPs with --layers.",
                )
        # Logits far from 0 too, where those that are capped are capped.
        far = min(LARGEST_STRETCH, FAR / max(float(logits.abs().max()), 1e-6))
        stretched = self.head.forward(batch, far)
        for own, of in ((logits, references), stretched):
            if not _alike(self.head.logits_of(of), own):
                raise UnsupportedModel(
                    f"models of type '{self.model_type}' change their logits in a way that malmen does not know",
                    remedy="Use a model of a family that it knows: malmen models families.",
                )

    def passes(
        self,
        texts: Sequence[Tokens],
        batch_tokens: int | None,
        kept: KeptStates | None = None,
        keep: KeepStates | None = None,
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Batch by batch the references (n, width) of `references`; the lower blocks run only for texts whose states
        are not kept.

        Args:
            keep: is given the states of the texts for which they run.
        """
        stored = [i for i, text in enumerate(texts) if kept is not None and text in kept]
        others = sorted(set(range(len(texts))).difference(stored))
        parts: list[tuple[KeptStates | None, list[int]]] = [(kept, stored), (None, others)]
        for states, part in parts:
            for batch in self.batches([texts[i] for i in part], batch_tokens):
                rows = tuple(part[row] for row in batch.rows)
                lower = None if states is None else states.of([texts[row] for row in rows]).to(self.device)
                with self._recorded(keep is not None and lower is None) as found:
                    references = self.references(batch, lower)
                if keep is not None and (read := self._packed(batch, found)) is not None:
                    keep([texts[row] for row in rows], read)
                yield replace(batch, rows=rows), references

    @torch.no_grad()
    def predictions(
        self,
        texts: Sequence[Tokens],
        *,
        batch_tokens: int | None = None,
        kept: KeptStates | None = None,
        keep: KeepStates | None = None,
    ) -> list[list[int]]:
        """Per text the model's likeliest label for each of its labels, the target's earlier tokens given; the rest as
        `passes` takes it."""
        found: list[list[int]] = [[] for _ in texts]
        for batch, references in self.passes(texts, batch_tokens, kept, keep):
            for i, label in zip(batch.text.tolist(), likeliest(self.head, references), strict=True):
                found[batch.rows[i]].append(label)
        return found

    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int | Sequence[int],
        *,
        batch_tokens: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Generated]:
        """Per prompt the greedy answer up to its natural end: the model's own end of text, or a line end; or its class.

        Prompts of one length share a batch, so that nothing is padded and each gets what it would get alone.

        Args:
            max_new_tokens: the cap, one for all or one per prompt; the model's positions may leave less room.
            batch_tokens: most tokens, read and new, of a batch. progress: called with prompts done and prompts in all.
        """
        size = batch_tokens or self.batch_tokens
        return self._answers()(prompts, max_new_tokens, batch_tokens=size, progress=progress)


def attends_plainly(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether passes that are differentiated take the plain form of attention, which rounds otherwise than a fused one.

    On a CPU the fused attention of 16-bit numbers takes ten times as long to differentiate as its plain form (torch
    2.13: 118 ms against 21 for 128 texts of 16 tokens).
    """
    return device.type == "cpu" and dtype in (torch.bfloat16, torch.float16)


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether logits are the same but for rounding, that of 16 bits."""
    return torch.allclose(a.double(), b.double(), rtol=0.05, atol=1e-3 * float(b.abs().max()))


def _require_resident(name: str, weight: Tensor) -> None:
    """A weight that is kept elsewhere, to be copied in for each pass, is a shape without memory here: writing to it
    would do nothing, and say nothing."""
    if weight.is_meta:
        raise UnsupportedModel(
            f"the weight of {name} is not kept on a device of its own, and must be changed", remedy="Use --device cpu."
        )
