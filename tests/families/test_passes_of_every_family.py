"""What malmen sees of every family's model, padded and in batches, against transformers alone, one text at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
from family_journey import first_facts
from family_models import AUTO_CLASSES, FAMILIES, INSPECTED, Task, every_model, save_family_model
from tiny_models import POSITIONS, Fact, load, make_claims, make_facts
from torch import Tensor, nn

from malmen_cli.errors import UsageError
from malmen_cli.language_models.language_model import LanguageModel


class Pair(NamedTuple):
    """One saved model, loaded by malmen and by transformers."""

    task: Task
    malmen: LanguageModel
    plain: Any
    tokenizer: Any


@pytest.fixture(scope="module", params=[*FAMILIES, *INSPECTED])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    import transformers

    task = every_model()[request.param].task
    # Gemma 2's attention takes its softmax in float32, where float64's lowest number, which masks, is minus infinity.
    dtype = torch.float32 if request.param == "gemma2" else torch.float64
    folder = save_family_model(tmp_path_factory.mktemp(request.param) / "model", request.param)
    plain = getattr(transformers, AUTO_CLASSES[task]).from_pretrained(folder, dtype=dtype).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return Pair(task, load(folder, float64=dtype == torch.float64), plain, tokenizer)


def some_facts(task: Task) -> list[Fact]:
    """Of unlike length, most targets of several tokens, one prompt longer than any sliding window by far."""
    facts = (make_claims if task == "classification" else make_facts)(7)
    long = "The city from which one rules the land goes by the name of Rome, the main language of which is Latin"
    return [*facts, Fact(prompt=long, target="REFUTES" if task == "classification" else "Latin")]


class Plain(NamedTuple):
    """One text by transformers alone: logits (n, classes), labels (n,), and the rows (u, g) wanted of each layer."""

    logits: Tensor
    labels: Tensor
    rows: dict[str, tuple[Tensor, Tensor]]


@contextmanager
def watched(model: nn.Module, names: list[str]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    for name in names:

        def keep(_: nn.Module, args: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            output.retain_grad()
            seen[name] = (args[0], output)

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    yield seen
    for handle in handles:
        handle.remove()


def by_transformers(pair: Pair, fact: Fact) -> Plain:
    names = [layer.name for layer in pair.malmen.layers]
    with watched(pair.plain, names) as seen:
        ids = pair.tokenizer(fact.prompt, return_tensors="pt").input_ids
        first = 0
        if pair.task == "causal":
            first = ids.shape[1] - 1
            ids = pair.tokenizer(f"{fact.prompt} {fact.target}", return_tensors="pt").input_ids
            labels = ids[0, first + 1 :]
            logits = pair.plain(input_ids=ids[:, :-1]).logits[0, first:]
        elif pair.task == "sequence-to-sequence":
            all_labels = pair.tokenizer(text_target=fact.target, return_tensors="pt").input_ids
            decoded = pair.plain.prepare_decoder_input_ids_from_labels(all_labels)
            # What every answer begins with tells nothing about this one.
            first = int(all_labels[0, 0] == pair.tokenizer.bos_token_id)
            labels = all_labels[0, first:]
            logits = pair.plain(input_ids=ids, decoder_input_ids=decoded).logits[0, first:]
        else:
            labels = torch.tensor([int(fact.target == "SUPPORTS")])
            logit = pair.plain(input_ids=ids).logits[0]
            logits = torch.stack([torch.zeros_like(logit), logit], dim=1)
        nn.functional.cross_entropy(logits, labels).backward()
    rows = {}
    for layer in pair.malmen.layers:
        u, output = seen[layer.name]
        assert output.grad is not None
        if layer.stack == "encoder":
            start, stop = 0, ids.shape[1]
        else:
            start, stop = (0, 1) if pair.task == "classification" else (first, first + len(labels))
        flat = u.detach().reshape(-1, u.shape[-1]), output.grad.reshape(-1, output.shape[-1])
        rows[layer.name] = flat[0][start:stop], flat[1][start:stop]
    return Plain(logits.detach(), labels, rows)


def close(a: Tensor, b: Tensor) -> bool:
    # Many families normalise in float32 whatever their dtype.
    tolerance = 1e-4 if a.dtype == torch.float32 else 1e-5
    return a.shape == b.shape and float((a - b).norm()) <= tolerance * float(b.norm())


@pytest.mark.parametrize("batch_tokens", [1, 10_000])
def test_rows_and_logits_are_those_of_one_text_alone(pair: Pair, batch_tokens: int) -> None:
    facts = some_facts(pair.task)
    texts = [pair.malmen.tokenizing(fact.prompt, fact.target) for fact in facts]
    found = 0
    for batch, rows in pair.malmen.capture(texts, batch_tokens=batch_tokens):
        logits = pair.malmen.logits(batch).split([texts[row].supervised for row in batch.rows])
        for place, row in enumerate(batch.rows):
            plain = by_transformers(pair, facts[row])
            assert list(texts[row].labels) == plain.labels.tolist()
            assert close(logits[place], plain.logits)
            for i, layer in enumerate(pair.malmen.layers):
                u = rows.keys[i].split(rows.counts[i])[place]
                g = rows.value_grads[i].split(rows.counts[i])[place]
                assert close(u, plain.rows[layer.name][0]), layer.name
                assert close(g, plain.rows[layer.name][1]), layer.name
            found += 1
    assert found == len(facts)


def test_references_give_the_logits_back(pair: Pair) -> None:
    texts = [pair.malmen.tokenizing(fact.prompt, fact.target) for fact in some_facts(pair.task)]
    for batch, _, references in pair.malmen.capture_reference(texts, batch_tokens=200):
        assert references.shape == (len(batch.labels), pair.malmen.head.width)
        assert close(pair.malmen.head.logits_of(references), pair.malmen.head.forward(batch)[0])


@torch.no_grad()
def test_hidden_states_stand_for_the_blocks_below_that_made_them(pair: Pair) -> None:
    model = pair.malmen
    texts = [model.tokenizing(fact.prompt, fact.target) for fact in some_facts(pair.task)]
    if pair.task == "sequence-to-sequence":
        assert model.lower is None  # two stacks are edited, and T5's blocks hand on more than hidden states
        return
    assert model.lower is not None
    states = {batch.rows: found for batch, found in model.lower_states(texts, batch_tokens=200)}
    for batch in model.batches(texts, 200):
        whole = model.logits(batch)
        assert close(model.logits(batch, states[batch.rows]), whole)
        assert not close(model.logits(batch, 2 * states[batch.rows]), whole)  # a control: they are what is used
        assert torch.equal(model.logits(batch), whole)  # and the blocks are back


@torch.no_grad()
def test_free_answers_are_those_of_transformers(pair: Pair) -> None:
    prompts = [fact.prompt for fact in some_facts(pair.task)]
    answers = pair.malmen.generate(prompts, 4)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = pair.tokenizer(prompt, return_tensors="pt").input_ids
        if pair.task == "classification":
            assert answer.text == ("SUPPORTS" if float(pair.plain(input_ids=ids).logits) > 0 else "REFUTES")
            continue
        mask = torch.ones_like(ids)
        greedy = {"do_sample": False, "num_beams": 1, "no_repeat_ngram_size": 0, "early_stopping": False}
        out = pair.plain.generate(ids, attention_mask=mask, max_new_tokens=4, **greedy)[0]
        new = out[ids.shape[1] :] if pair.task == "causal" else out
        plain = pair.tokenizer.decode(new, skip_special_tokens=True)
        assert answer.text.startswith(plain.split("\n")[0].strip()) or plain.strip().startswith(answer.text)


def test_the_longest_text_that_the_model_has_positions_for_fits_and_no_longer_one(pair: Pair) -> None:
    if pair.malmen.tokenizing.limit is None:
        assert every_model()["t5"].task == pair.task  # relative positions: there is no end
        return
    assert pair.malmen.tokenizing.limit == POSITIONS
    target = first_facts(pair.task)[0].target
    texts = [pair.malmen.tokenizing.fits("a" + " the" * count, target) for count in range(POSITIONS + 2)]
    fitting = [text for text in texts if text is not None]
    assert texts[-1] is None
    assert max(len(text.input_ids) for text in fitting) == POSITIONS
    assert bool(torch.isfinite(next(pair.malmen.capture(fitting[-1:]))[1].value_grads[0]).all())
    with pytest.raises(UsageError, match="positions"):
        pair.malmen.tokenizing("a" + " the" * (POSITIONS + 1), target)
