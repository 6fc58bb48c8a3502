"""MEMIT piece by piece against derivations that share no code with it, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import FAMILIES, save_family_model
from tiny_models import SENTENCES, load, make_fact, make_facts, save_tiny_model
from torch.nn import functional

from malmen_cli.errors import UnsafeFile, UnsupportedModel, UsageError
from malmen_cli.facts import Fact
from malmen_cli.language_models.language_model import LanguageModel
from malmen_cli.methods.key_covariance import key_covariance
from malmen_cli.methods.memit import Memit, contexts, lookup_of, spread_shift
from malmen_cli.methods.memit_targets import target_outputs
from malmen_cli.methods.residual_stream import ResidualStream
from malmen_cli.methods.settings import MemitSettings

TEXT = "\n\n".join(SENTENCES)
LAYERS = ["transformer.h.1.mlp.c_proj", "transformer.h.2.mlp.c_proj"]
QUICK = MemitSettings(target_steps=4, prefixes=("The",), prefix_tokens=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("memit") / "model", layers=4)


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return load(folder, layers=LAYERS)


def transformers_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def memit(model: LanguageModel, settings: MemitSettings = QUICK) -> Memit:
    method = Memit(settings, model.shapes)
    method.prepare(model, [], TEXT)
    return method


def test_the_covariance_is_the_plain_second_moment_of_all_keys(folder: Path, model: LanguageModel) -> None:
    plain, keys = transformers_model(folder), []
    hook = plain.get_submodule(LAYERS[0]).register_forward_hook(lambda module, args, output: keys.append(args[0][0]))
    for line in TEXT.split("\n\n"):
        with torch.no_grad():
            plain(input_ids=torch.tensor([model.tokenizing.tokenizer(line)["input_ids"]]))
    hook.remove()
    wanted = torch.cat(keys).T @ torch.cat(keys) / sum(map(len, keys))
    found, tokens = key_covariance(model, TEXT, tokens=10_000, batch_tokens=60)
    assert tokens == sum(map(len, keys))
    assert found[0].dtype == torch.float64
    assert float((found[0] - wanted).norm() / wanted.norm()) <= 1e-12
    assert key_covariance(model, TEXT, tokens=50)[1] == 50
    with pytest.raises(UsageError, match=r"of 9 tokens of the running text, and the keys .* have 32 dimensions"):
        key_covariance(model, TEXT, tokens=9)


@pytest.mark.parametrize("n", [3, 40])
@pytest.mark.parametrize("weight", [15000.0, 1e-3])
def test_the_shift_is_the_least_squares_solution(n: int, weight: float) -> None:
    torch.manual_seed(n)
    samples, keys = torch.randn(60, 12, dtype=torch.float64), torch.randn(n, 12, dtype=torch.float64)
    residuals = torch.randn(n, 7, dtype=torch.float64)
    covariance = samples.T @ samples / len(samples)
    # argmin |K S - R|^2 + weight tr(S^T C0 S), stacked, by singular values.
    rows = torch.cat([keys, samples * (weight / len(samples)) ** 0.5])
    wanted = torch.linalg.pinv(rows) @ torch.cat([residuals, residuals.new_zeros(len(samples), 7)])
    found = spread_shift(keys, residuals, covariance, weight)
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-9


def straightforward_target(
    folder: Path, model: LanguageModel, fact: Fact, prefixes: list[str], s: MemitSettings
) -> torch.Tensor:
    """z of one fact by a hook on the whole transformers model, text by text, everything run anew in every step."""
    plain = transformers_model(folder)
    for parameter in plain.parameters():
        parameter.requires_grad_(False)
    tokenizer, subject = model.tokenizing.tokenizer, str(fact.subject)
    block = plain.transformer.h[2]
    delta: torch.Tensor | None = None
    seen: list[torch.Tensor] = []

    def end_of_subject(text: str) -> int:
        return len(tokenizer(text[: text.rindex(subject) + len(subject)])["input_ids"]) - 1

    def logits(text: str, place: int) -> torch.Tensor:
        def hook(module: Any, args: Any, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            seen.append(states[0, place].detach())
            if delta is None:
                return output
            step = torch.zeros_like(states)
            step[0, place] = 1
            return (states + step * delta, *output[1:]) if isinstance(output, tuple) else states + step * delta

        handle = block.register_forward_hook(hook)
        found: torch.Tensor = plain(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0]
        handle.remove()
        return found

    essence = f"{subject} is a"
    before = logits(essence, end_of_subject(essence))[-1].log_softmax(0)
    seen.clear()
    logits(fact.prompt, end_of_subject(fact.prompt))
    start = seen[0]
    delta = torch.zeros_like(start, requires_grad=True)
    rate = s.target_learning_rate or s.target_rate * float(start.square().mean().sqrt())
    optimizer = torch.optim.Adam([delta], lr=rate)
    for _ in range(s.target_steps):
        losses = []
        for prefix in ["", *prefixes]:
            prompt = prefix + fact.prompt
            whole = f"{prompt} {fact.target}"
            target = tokenizer(whole)["input_ids"][len(tokenizer(prompt)["input_ids"]) :]
            said = logits(whole, end_of_subject(prompt))[-len(target) - 1 : -1]
            losses.append(functional.cross_entropy(said, torch.tensor(target)))
        now = logits(essence, end_of_subject(essence))[-1].log_softmax(0)
        loss = torch.stack(losses).mean() + s.kl_factor * functional.kl_div(
            before, now, log_target=True, reduction="sum"
        )
        loss = loss + s.weight_decay * delta.norm() / start.norm() ** 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            if delta.norm() > s.clamp * start.norm():
                delta.mul_(s.clamp * start.norm() / delta.norm())
    return (start + delta).detach()


@pytest.mark.parametrize(("clamp", "rate"), [(0.2, 0.5), (5.0, 0.5), (0.5, None)])
def test_targets_are_those_of_a_plain_loop(
    folder: Path, model: LanguageModel, clamp: float, rate: float | None
) -> None:
    changed = {"clamp": clamp, "kl_factor": 0.5, "batch_tokens": 40, "target_learning_rate": rate}
    settings = QUICK.model_copy(update=changed)
    stream, facts = ResidualStream(model), make_facts(6)
    prefixes = contexts(model, settings)
    assert len(prefixes) == 1 and prefixes[0].startswith("The") and prefixes[0].endswith(". ")
    found = target_outputs(stream, [lookup_of(model.tokenizing, fact, prefixes) for fact in facts], settings)
    for fact, z in zip(facts, found, strict=True):
        wanted = straightforward_target(folder, model, fact, prefixes, settings)
        assert float((z - wanted).norm() / wanted.norm()) <= (1e-9 if rate else 1e-5)  # Adam's 1e-8 has a unit


def test_facts_that_are_learnt_are_left_as_they_are(model: LanguageModel) -> None:
    stream, facts = ResidualStream(model), make_facts(3)
    lookups = [lookup_of(model.tokenizing, fact, []) for fact in facts]
    _, outputs = stream.read([lookup.heads()[0] for lookup in lookups], [], 2048)
    done = target_outputs(stream, lookups, QUICK.model_copy(update={"target_loss": 1e3}))
    assert float((done - outputs).norm() / outputs.norm()) <= 1e-12
    assert float((target_outputs(stream, lookups, QUICK) - outputs).norm() / outputs.norm()) > 0.1


def test_what_is_read_keeps_no_batches(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    stack, held = torch.stack, list[tuple[int, int]]()

    def watched(rows: list[torch.Tensor]) -> torch.Tensor:
        held.extend((row.untyped_storage().nbytes(), row.nbytes) for row in rows)
        return stack(rows)

    monkeypatch.setattr(torch, "stack", watched)
    heads = [lookup_of(model.tokenizing, fact, []).heads()[0] for fact in make_facts(6)]
    ResidualStream(model).read(heads, [0, 1], 2048)
    assert len(held) == 18 and all(storage == row for storage, row in held)


def test_the_layers_together_reach_the_targets(model: LanguageModel) -> None:
    settings = QUICK.model_copy(update={"covariance_weight": 1e-7, "prefixes": ()})
    stream, facts = ResidualStream(model), make_facts(6)
    lookups = [lookup_of(model.tokenizing, fact, []) for fact in facts]
    heads = [lookup.heads()[0] for lookup in lookups]
    targets = target_outputs(stream, lookups, settings)
    _, before = stream.read(heads, [], 2048)
    base = model.weights()
    shifts = memit(model, settings).shifts(model, facts)
    assert all(float(shift.norm()) > 0 for shift in shifts)
    try:
        model.set_weights([weight + shift for weight, shift in zip(base, shifts, strict=True)])
        _, after = stream.read(heads, [], 2048)
    finally:
        model.set_weights(base)
    assert float((targets - after).norm() / (targets - before).norm()) <= 1e-4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_same_facts_give_the_same_bits_and_leave_the_model_as_it_was(tmp_path: Path, dtype: str) -> None:
    folder = save_tiny_model(tmp_path / "model", "llama", dtype=dtype, layers=4)
    model = load(folder, float64=False, layers=["model.layers.[12].mlp.down_proj"])
    before, method = model.weights(), memit(model)
    restored = Memit(QUICK, model.shapes)
    restored.load_tensors(method.tensors())
    first, again = method.shifts(model, make_facts(5)), restored.shifts(model, make_facts(5))
    assert all(shift.dtype == torch.float32 and bool(torch.isfinite(shift).all()) for shift in first)
    assert all(float(shift.abs().max()) > 0 for shift in first)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, model.weights(), strict=True))


def test_facts_without_a_subject_are_refused_by_name_or_edited_at_their_last_token(model: LanguageModel) -> None:
    nameless = [replace(make_fact(1), subject=None), replace(make_fact(2), subject="Atlantis"), make_fact(3)]
    method = memit(model)
    with pytest.raises(UsageError, match=r"2 of 3 facts have none in their prompt: 'The capital of") as refused:
        method.shifts(model, nameless)
    assert "without_subject" in str(refused.value.remedy)
    settings = QUICK.model_copy(update={"without_subject": "last token"})
    assert all(float(shift.norm()) > 0 for shift in memit(model, settings).shifts(model, nameless))
    lookup = lookup_of(model.tokenizing, nameless[0], [])
    assert lookup.places == (len(model.tokenizing.prompt_ids(nameless[0].prompt)) - 1,)
    assert lookup.essence is None


def test_no_facts_are_no_shift(model: LanguageModel) -> None:
    assert all(not shift.any() for shift in memit(model).shifts(model, []))


@pytest.mark.parametrize("name", ["gptj", "gpt_neox", "opt", "llama", "mistral", "qwen3", "phi", "phi3", "olmo2"])
def test_families_it_edits_or_refuses_in_words(tmp_path: Path, name: str) -> None:
    every = FAMILIES.get(name)
    glob = every.edited[0].replace("*", "1") if every else "model.layers.1.mlp.down_proj"
    model = load(save_family_model(tmp_path / "model", name), layers=[glob])
    if name == "olmo2":  # a norm follows the MLP
        with pytest.raises(UnsupportedModel, match="is not added to the hidden states as it is"):
            ResidualStream(model)
    else:
        [shift] = memit(model).shifts(model, make_facts(3))
        assert float(shift.norm()) > 0


@pytest.mark.parametrize("name", ["t5", "bert"])
def test_models_that_are_not_causal_are_refused(tmp_path: Path, name: str) -> None:
    model = load(save_family_model(tmp_path / "model", name))
    with pytest.raises(UnsupportedModel, match="memit edits causal models"):
        Memit(QUICK, model.shapes).prepare(model, [], TEXT)


def test_a_context_begins_with_something() -> None:
    with pytest.raises(ValueError, match="prefixes"):
        MemitSettings(prefixes=("The", " "))


def test_what_cannot_be_is_refused(folder: Path, model: LanguageModel) -> None:
    with pytest.raises(UsageError, match="cannot edit the last block"):
        ResidualStream(load(folder, layers=["transformer.h.3.mlp.c_proj"]))
    with pytest.raises(UnsupportedModel, match="is not added to the hidden states as it is"):
        ResidualStream(load(folder, layers=["transformer.h.1.mlp.c_fc"]))
    with pytest.raises(UsageError, match="needs running text"):
        Memit(QUICK, model.shapes).prepare(model, [], None)


def test_tensors_from_strangers_are_checked(model: LanguageModel) -> None:
    tensors = memit(model).tensors()
    name = "covariance.1"
    for damaged in (
        {k: v for k, v in tensors.items() if k != name},
        {**tensors, "more": tensors[name]},
        {**tensors, name: tensors[name][:5]},
        {**tensors, name: tensors[name].double()},
        {**tensors, name: torch.full_like(tensors[name], float("nan"))},
    ):
        with pytest.raises(UnsafeFile):
            Memit(QUICK, model.shapes).load_tensors(damaged)
