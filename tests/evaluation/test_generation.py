"""Greedy generation: batched is one by one, and it ends where the model ends, at a line end, or at the cap."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import POSITIONS, Family, load, make_facts

from malmen_cli.evaluation.generation import exact_match, normalised
from malmen_cli.facts import read_fact_set
from malmen_cli.language_models.generation import Generated
from malmen_cli.language_models.language_model import LanguageModel

FAMILIES: list[Family] = ["gpt2", "llama"]
PROMPTS = [fact.prompt for fact in make_facts(6)] + [fact.rephrases[0] for fact in make_facts(4)] + ["A", "A stone, a"]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, tiny_folder: Callable[..., Path]) -> LanguageModel:
    return load(tiny_folder(request.param))


@pytest.fixture
def untied(tiny_folder: Callable[..., Path]) -> LanguageModel:
    """A model whose head may be rewritten without changing what it reads."""
    return load(tiny_folder("llama"))


def greedy(model: LanguageModel, prompt: str, count: int) -> list[int]:
    """The likeliest tokens after a prompt, one whole forward pass each, whatever they are."""
    ids: list[int] = list(model.tokenizing.tokenizer(prompt)["input_ids"])
    read = len(ids)
    for _ in range(count):
        ids.append(int(model.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[read:]


def expected(model: LanguageModel, prompt: str, cap: int) -> Generated:
    """What the model says to a prompt, by the words of the definition."""
    tokenizer = model.tokenizing.tokenizer
    tokens = greedy(model, prompt, cap)
    ended = tokenizer.eos_token_id in tokens
    tokens = tokens[: tokens.index(tokenizer.eos_token_id)] if ended else tokens
    said = tokenizer.decode(tokens, skip_special_tokens=True)
    said = said.lstrip()
    return Generated(said.split("\n")[0].strip(), ended or "\n" in said)


def text_of(model: LanguageModel, tokens: list[int]) -> str:
    return str(model.tokenizing.tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def say_instead(model: LanguageModel, token: int, other: int) -> None:
    """Let the model say `other` wherever it said `token`, and the other way round."""
    head: Any = model.head.module
    with torch.no_grad():
        head.weight[[token, other]] = head.weight[[other, token]]


class TestBatches:
    @pytest.mark.parametrize("batch_tokens", [1, 100, 10_000])
    def test_give_each_prompt_what_it_gets_alone(self, model: LanguageModel, batch_tokens: int) -> None:
        lengths = {len(ids) for ids in model.tokenizing.tokenizer(PROMPTS)["input_ids"]}
        assert 1 < len(lengths) < len(PROMPTS)  # so that there are batches of several, and several batches
        alone = [model.generate([prompt], 9)[0] for prompt in PROMPTS]
        assert model.generate(PROMPTS, 9, batch_tokens=batch_tokens) == alone
        assert alone == [expected(model, prompt, 9) for prompt in PROMPTS]
        assert len({answer.stopped for answer in alone}) == 2

    def test_keep_a_cap_per_prompt(self, model: LanguageModel) -> None:
        caps = [1 + i % 5 for i in range(len(PROMPTS))]
        found = model.generate(PROMPTS, caps)
        assert found == [model.generate([prompt], cap)[0] for prompt, cap in zip(PROMPTS, caps, strict=True)]
        shorter = model.generate(PROMPTS[:1] * 3, [2, 6, 4])
        assert len({answer.text for answer in shorter}) == 3 and shorter[1].text.startswith(shorter[2].text)

    def test_report_progress(self, model: LanguageModel) -> None:
        seen: list[tuple[int, int]] = []
        model.generate(PROMPTS, 2, batch_tokens=30, progress=lambda done, total: seen.append((done, total)))
        assert seen[-1] == (len(PROMPTS), len(PROMPTS)) and len(seen) > 1
        assert model.generate([], 3) == []

    def test_the_widest_layer_reads_states_without_gaps(self, model: LanguageModel) -> None:
        """Else torch's bfloat16 linear on a CPU copies its weight per prompt: a hundred times slower, gigabytes."""
        head: Any = model.head.module
        forward, strides = head.forward, []

        def seen(states: torch.Tensor) -> torch.Tensor:
            strides.append((states.stride(), torch.empty(states.shape).stride()))
            out: torch.Tensor = forward(states)
            return out

        head.forward = seen
        model.generate(PROMPTS, 2)
        model.generate(PROMPTS[:1], 2)  # one prompt is "contiguous" with any stride
        assert strides and all(found == dense for found, dense in strides)

    def test_on_a_real_model(self, shared_dir: Path) -> None:
        model = LanguageModel(shared_dir / "models" / "cf-gpt2")
        facts = read_fact_set(shared_dir / "data" / "counterfact" / "dev.json").facts[:16]
        prompts = [prompt for fact in facts for prompt in (fact.prompt, *fact.rephrases)]
        found = model.generate(prompts, 12)
        assert found == [model.generate([prompt], 12)[0] for prompt in prompts]
        assert sum(answer.stopped for answer in found) >= 0.9 * len(found)


class TestEnd:
    def test_at_the_cap_is_not_natural(self, model: LanguageModel) -> None:
        [found] = model.generate(PROMPTS[:1], 4)
        assert found == Generated(text_of(model, greedy(model, PROMPTS[0], 4)), False)

    @pytest.mark.parametrize("several", [False, True])
    def test_at_the_models_own_end_of_text(self, model: LanguageModel, several: bool) -> None:
        tokens = greedy(model, PROMPTS[0], 8)
        place = next(i for i in range(1, 8) if tokens[i] not in tokens[:i])
        model.model.generation_config.eos_token_id = [tokens[place], 1] if several else tokens[place]
        found = model.generate(PROMPTS, 8)
        assert found[0] == Generated(text_of(model, tokens[:place]), True)
        assert found == [model.generate([prompt], 8)[0] for prompt in PROMPTS]

    def test_an_end_of_text_on_the_last_token_that_the_cap_allows_is_natural(self, model: LanguageModel) -> None:
        tokens = greedy(model, PROMPTS[0], 8)
        place = next(i for i in range(1, 8) if tokens[i] not in tokens[:i])
        model.model.generation_config.eos_token_id = tokens[place]
        assert model.generate(PROMPTS[:1], place + 1)[0].stopped
        assert not model.generate(PROMPTS[:1], place)[0].stopped

    def test_at_a_line_end(self, untied: LanguageModel) -> None:
        tokens = greedy(untied, PROMPTS[0], 8)
        place = next(i for i in range(1, 8) if tokens[i] not in tokens[:i] and text_of(untied, tokens[:i]))
        [line_end] = untied.tokenizing.tokenizer("\n", add_special_tokens=False)["input_ids"]
        say_instead(untied, tokens[place], line_end)
        found = untied.generate(PROMPTS, 8)
        assert found[0] == Generated(text_of(untied, tokens[:place]), True)
        assert found == [untied.generate([prompt], 8)[0] for prompt in PROMPTS]

    def test_is_not_at_a_line_end_before_anything_is_said(self, untied: LanguageModel) -> None:
        first = greedy(untied, PROMPTS[0], 1)[0]
        [line_end] = untied.tokenizing.tokenizer("\n", add_special_tokens=False)["input_ids"]
        say_instead(untied, first, line_end)
        tokens = greedy(untied, PROMPTS[0], 6)
        assert tokens[0] == line_end and tokens[1] != line_end
        [found] = untied.generate(PROMPTS[:1], 6)
        line, _, rest = text_of(untied, tokens).partition("\n")
        assert line and found == Generated(line.strip(), bool(rest) or line_end in tokens[2:])

    def test_is_where_the_positions_end(self, model: LanguageModel) -> None:
        prompt = "The capital" + " of" * (POSITIONS - 10)
        room = POSITIONS + 1 - len(model.tokenizing.tokenizer(prompt)["input_ids"])
        assert 0 < room < 12
        [found] = model.generate([prompt], 40)
        assert found == expected(model, prompt, room) and not found.stopped
        assert model.generate(["The capital" + " of" * POSITIONS, "A"], 2)[0] == Generated("", False)


class TestExactMatch:
    @pytest.mark.parametrize(
        ("said", "target"),
        [
            ("Paris", "Paris"),
            (" Paris.", "Paris"),
            ("Paris .", " Paris "),
            ("St. Louis", "St. Louis."),
            ("U.S.", "U.S"),
        ],
    )
    def test_leaves_white_space_and_one_full_stop_aside(self, said: str, target: str) -> None:
        assert exact_match(Generated(said, True), target)

    @pytest.mark.parametrize("said", ["paris", "Paris..", "Paris, France", "Paris!", "in Paris", "Par is", ""])
    def test_and_nothing_else(self, said: str) -> None:
        assert not exact_match(Generated(said, True), "Paris")

    def test_an_answer_is_a_line_and_of_a_target_its_first_is_asked(self) -> None:
        assert exact_match(Generated("London.", True), "London\r\nParis")
        assert not exact_match(Generated("Paris", True), "London\nParis")

    def test_an_answer_that_was_cut_off_matches_nothing(self) -> None:
        assert not exact_match(Generated("Paris", False), "Paris")

    def test_normalised(self) -> None:
        assert normalised("\t New  York. \n") == "New  York"
