"""What an apply would take, told from the model's configuration, the facts' tokens and this machine's rates alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from malmen_cli.checkpoint.safetensors_file import read_header
from malmen_cli.facts import Fact
from malmen_cli.language_models.arithmetic import Passes, arithmetic_of, passes
from malmen_cli.language_models.edited_layers import EditedLayer, edited_layers
from malmen_cli.language_models.footprint import Job, footprint, planned_model, stored_dtype, weight_bytes
from malmen_cli.language_models.language_model import attends_plainly
from malmen_cli.language_models.loading import load_tokenizer, read_config
from malmen_cli.language_models.tasks import parts_of
from malmen_cli.language_models.texts import tokens_at_once
from malmen_cli.language_models.tokenizing import Tokenizing, Tokens
from malmen_cli.ledger import Ledger, store
from malmen_cli.methods.registry import method_of
from malmen_cli.operations.active import Proposal, edit_digests, sizes_of
from malmen_cli.operations.apply import ApplyOptions
from malmen_cli.operations.asked_states import states_limit
from malmen_cli.operations.editors import TENSORS, settings_of
from malmen_cli.operations.forecast import Counts, LayerCounts, forecast
from malmen_cli.operations.layers import layers_of
from malmen_cli.operations.memory import described, job_for, place_model, run_dtype
from malmen_cli.operations.packed_texts import PackedTexts
from malmen_cli.operations.plan import Forecast
from malmen_cli.operations.rates import Rates, measure

COUNTED = 1000
"""Facts whose rephrases and unrelated prompts are tokenised; of more those of every so-manyth, and multiplied."""


@dataclass(frozen=True)
class Reckoned:
    """What an apply was reckoned from.

    Attributes:
        counts, rates: of the time. memory: bytes by parts, and what is free, for `--json`. peak: bytes in all. keeping:
            bytes of the editor's files, where it is kept nowhere yet.
    """

    counts: Counts
    rates: Rates
    memory: dict[str, Any]
    peak: int
    keeping: int = 0

    @cached_property
    def phases(self) -> dict[str, float]:
        """Seconds."""
        return forecast(self.counts, self.rates)

    def prediction(self) -> Forecast:
        return Forecast(
            seconds=sum(self.phases.values()),
            memory=self.peak,
            disk=self.counts.new_row_bytes + self.counts.tensor_bytes + self.keeping,
            temporary=self.counts.largest_shard,
            phases=self.phases,
        )


def predict(options: ApplyOptions) -> Callable[[Ledger, Proposal], tuple[Forecast | None, dict[str, Any]]]:
    """What `plan_facts` takes: the prediction, and memory by parts, of an apply with these options.

    How long a per-set method runs the model depends on how soon it is content: that cannot be told without trying.
    """

    def predicted(ledger: Ledger, proposal: Proposal) -> tuple[Forecast | None, dict[str, Any]]:
        reckoned = reckon(ledger, proposal, options)
        return reckoned.prediction() if proposal.editor.per_fact else None, reckoned.memory

    return predicted


def reckon(ledger: Ledger, proposal: Proposal, options: ApplyOptions) -> Reckoned:
    """Count an apply and measure this machine, which takes about a second; no weight is read, no editor loaded.

    What this process has computed for until then is what an apply's start takes: libraries, ledger, tokenizer.

    Raises:
        UnsupportedModel: transformers cannot build the model, or has no tokenizer for it.
    """
    settings, record = settings_of(proposal.editor), proposal.model
    config = read_config(record.path)
    model = planned_model(record.path, config)
    dtype = run_dtype(settings) or stored_dtype(record.path, config)
    layers = layers_of(proposal.editor.config)
    anchors, size = _anchors(ledger, proposal, len(layers))
    job = replace(
        job_for("apply", settings, len(proposal.active), options.batch_tokens), preserved_keys=max(anchors, default=0)
    )
    placement = place_model(ledger, record, layers, options.device, settings, job)
    device = torch.device(placement.device)
    tokenizer = load_tokenizer(record.path)
    parts = parts_of(model, tokenizer, device, chat=settings.chat_template, end_of_text=settings.end_of_text)
    found = edited_layers(model, config.model_type, [layer.name for layer in layers])
    texts = _Texts(parts.tokenizing, options.batch_tokens or tokens_at_once(dtype))
    counts = _counts(ledger, proposal, options, model, found, texts, job, anchors, dtype, size)
    if attends_plainly(device, dtype):  # what a capture leaves is of no use to what is asked
        counts = replace(counts, noted=Passes())
    start = time.process_time() - texts.seconds
    length = round(counts.asked.answer / max(1, counts.asked.texts))
    first = counts.layers[0]
    rates = measure(
        config,
        dtype,
        device,
        (first.d_in, first.d_out),
        folder=ledger.workspace.root,
        length=length,
        start=start,
        texts=texts.made / texts.seconds,
    )
    # The checkpoint has been checked by now, which is counted apart.
    rates = replace(rates, start=max(0.0, start - counts.checkpoint / rates.digest))
    asked, of_texts = counts.asked, max(1, counts.asked.texts)
    job = replace(job, tokens=max(1, asked.encoder, asked.answer) / of_texts, labels=max(1, asked.labels) / of_texts)
    planned = footprint(model, found, job, dtype)
    return Reckoned(counts, rates, described(planned, placement), planned.total, sum(sizes_of(proposal.made)))


def _counts(
    ledger: Ledger,
    proposal: Proposal,
    options: ApplyOptions,
    model: nn.Module,
    layers: Sequence[EditedLayer],
    texts: _Texts,
    job: Job,
    anchors: Sequence[int],
    dtype: torch.dtype,
    editor: int,
) -> Counts:
    manifest = proposal.model.manifest
    edits = edit_digests(proposal.active)
    with ledger.read() as db:
        old = store.facts_with(db, sorted(proposal.kept())[: options.check_old])
        stored = store.rows_of(db, proposal.editor.id, edits)
    of_layers = [stored.get(layer.name, {}) for layer in layers]
    wanted = {edit for edit in edits if any(edit not in rows for rows in of_layers)}
    facts = proposal.facts.facts
    some = facts[:: max(1, len(facts) // COUNTED)]
    factor = len(facts) / len(some)
    own = texts.own(facts)  # of all, since none may be planned that does not fit
    fresh = [fact for fact in facts if fact.edit_digest in wanted]
    capture = own if len(fresh) == len(facts) else texts.own(fresh)
    asked = own + texts.others(some).times(factor)
    of_old = texts.earlier(list(old.values()))
    # Where rows are those of all tokens, the last block's few are taken to be as many.
    everywhere = proposal.editor.per_fact and method_of(proposal.editor.config).load().everywhere
    new = {"encoder": capture.encoded, "answer": capture.answer if everywhere else capture.labels}
    names = {layer.name: layer for layer in layers_of(proposal.editor.config)}
    tensors = [names[layer.name].tensor for layer in layers]
    counted = []
    for layer, rows, tensor, kept in zip(layers, of_layers, tensors, anchors, strict=True):
        shape = layer.shape
        counted.append(
            LayerCounts(
                d_in=shape.d_in,
                d_out=shape.d_out,
                new=new[layer.stack],
                rows=max(1, new[layer.stack] + sum(row.count for row in rows.values())),
                facts=len(edits),
                anchors=kept,
                item=manifest.slot(tensor).length // (shape.d_in * shape.d_out),
                key_item=dtype.itemsize,
            )
        )
    arithmetic = arithmetic_of(model, layers)
    config: Any = model.config
    # Padded tokens, of which there are hardly more than of others: batches are of texts of similar length.
    states = (asked.encoder or asked.answer) * config.get_text_config().hidden_size * dtype.itemsize
    share = min(1.0, states_limit() / max(1, states)) if any(arithmetic.kept_out.values()) else 0.0
    shards = {manifest.tensors[name].file for name in tensors}
    sizes = [manifest.weights[name].size for name in shards]
    return Counts(
        model=arithmetic,
        layers=tuple(counted),
        capture=capture,
        asked=asked,
        old=of_old,
        answers=texts.answers(facts[: options.sample]),
        texts=asked.texts + of_old.texts,
        rank=job.rank,
        blocks=job.blocks,
        weights=weight_bytes(model, dtype),
        checkpoint=sum(weights.size for weights in manifest.weights.values()),
        shards=sum(sizes),
        largest_shard=max(sizes, default=0),
        editor=editor,
        kept=share,
        noted=capture if proposal.editor.per_fact and len(fresh) == len(facts) else Passes(),
    )


def _anchors(ledger: Ledger, proposal: Proposal, layers: int) -> tuple[list[int], int]:
    """Rows of preserved keys per layer of an editor, by the header of its file, and the file's bytes."""
    if proposal.made is not None:  # of a method that has none
        return [0] * layers, len(proposal.made.files[TENSORS])
    path = ledger.workspace.editors / proposal.editor.id / TENSORS
    slots = read_header(path).slots
    names = [f"preserved.{layer}.keys" for layer in range(layers)]
    return [slots[x].shape[0] if x in slots and slots[x].shape else 0 for x in names], path.stat().st_size


class _Texts:
    """Tokenises, and keeps the time."""

    def __init__(self, tokens: Tokenizing, batch_tokens: int) -> None:
        self._tokens, self._batch_tokens = tokens, batch_tokens
        self.seconds, self.made = 1e-9, 0

    def _passes(self, pairs: Sequence[tuple[str, str]], *, all_fit: bool = False) -> Passes:
        began = time.thread_time()
        if all_fit:
            texts: Sequence[Tokens] = PackedTexts(self._tokens.all_of(pairs))
        else:
            texts = [text for prompt, target in pairs if (text := self._tokens.fits(prompt, target)) is not None]
        self.seconds, self.made = self.seconds + time.thread_time() - began, self.made + len(pairs)
        return passes(self._tokens.batches(texts, self._batch_tokens))

    def own(self, facts: Sequence[Fact]) -> Passes:
        """The edit prompts. Raises BadFacts for those that do not fit the model, as an apply would."""
        return self._passes([(fact.prompt, fact.target) for fact in facts], all_fit=True)

    def earlier(self, facts: Sequence[Fact]) -> Passes:
        """The edit prompts of facts that are asked again; what does not fit is not."""
        return self._passes([(fact.prompt, fact.target) for fact in facts])

    def others(self, facts: Sequence[Fact]) -> Passes:
        """Rephrases, and unrelated prompts."""
        rephrases = self._passes([(prompt, fact.target) for fact in facts for prompt in fact.rephrases])
        return rephrases + self._passes([(x.prompt, x.target) for fact in facts for x in fact.unrelated])

    def answers(self, facts: Sequence[Fact]) -> Passes:
        """Free answers as long as the targets: a pass for the prompt, and one for each further token."""
        total = Passes()
        for fact in facts:
            own = self._passes([(fact.prompt, fact.target)])
            total += Passes(own.texts, max(1, own.labels), own.encoder, own.answer, own.labels)
        return total
