"""Where a subject ends in its prompt, in the tokens of every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import family_tokenizers
import pytest

from malmen_cli.facts.subjects import subject_span
from malmen_cli.language_models.tokenizing import CausalTokenizing
from malmen_cli.methods.subject_span import last_prompt_token, last_subject_token

KINDS: list[Callable[[], Any]] = [
    family_tokenizers.gpt2,
    family_tokenizers.gpt_neox,
    family_tokenizers.opt,
    family_tokenizers.qwen,
    family_tokenizers.llama2,
    family_tokenizers.phi3,
    family_tokenizers.gemma,
    family_tokenizers.llama3,
]
CASES = [  # prompt, subject, and the prompt up to the subject's end
    ("The capital of Bakeli is", "Bakeli", "The capital of Bakeli"),
    ("Bakeli's capital is", "Bakeli", "Bakeli"),
    ("Who rules Bakeli", "Bakeli", "Who rules Bakeli"),
    ("Bakeli is not Monura, and Bakeli is", "Bakeli", "Bakeli is not Monura, and Bakeli"),
    ("The city of New York lies", "New York", "The city of New York"),
    ("People of São Tomé speak", "São Tomé", "People of São Tomé"),
    ("The bridge of (Lima) is", "(Lima)", "The bridge of (Lima)"),
]


def token_that_ends(tokenizer: Any, ids: list[int], head: str) -> int:
    """By decoding alone: the first token after which all of `head` can be read."""
    for place in range(len(ids)):
        if tokenizer.decode(ids[: place + 1], skip_special_tokens=True).strip().startswith(head):
            return place
    raise AssertionError(head)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_subject_ends_where_decoding_says(kind: Callable[[], Any]) -> None:
    tokenizer = kind()
    tokenizing = CausalTokenizing(tokenizer, None)
    for prompt, subject, head in CASES:
        ids = tokenizing.prompt_ids(prompt)
        found = last_subject_token(tokenizing, prompt, subject)
        assert found == token_that_ends(tokenizer, ids, head), (prompt, tokenizer.convert_ids_to_tokens(ids))
        assert list(tokenizing(prompt, "Rome").input_ids[: len(ids)]) == ids  # with its target it is read the same
        assert last_prompt_token(tokenizing, prompt) == len(ids) - 1


def test_of_a_known_sentence_it_is_the_token_counted_by_hand() -> None:
    tokenizing = CausalTokenizing(family_tokenizers.gpt2(), None)
    pieces = tokenizing.tokenizer.convert_ids_to_tokens(tokenizing.prompt_ids("The capital of Bakeli is Paris"))
    assert pieces == ["The", "Ġcapital", "Ġof", "ĠBakeli", "Ġis", "ĠParis"]
    assert last_subject_token(tokenizing, "The capital of Bakeli is Paris", "Bakeli") == 3
    assert last_subject_token(tokenizing, "The capital of Bakeli is Paris", "capital of Bakeli") == 3
    assert last_subject_token(tokenizing, "The capital of Bakeli is Paris", "Monura") is None


def test_inside_a_chat_template_it_is_the_users_mention() -> None:
    tokenizer = family_tokenizers.gpt2()
    tokenizer.chat_template = (
        "{% for m in messages %}Ask {{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}Say of Lima: {% endif %}"
    )
    tokenizing = CausalTokenizing(tokenizer, None, chat=True)
    ids = tokenizing.prompt_ids("The capital of Lima is")
    found = last_subject_token(tokenizing, "The capital of Lima is", "Lima")
    assert found == token_that_ends(tokenizer, ids, "Ask user: The capital of Lima")


@pytest.mark.parametrize(
    ("prompt", "subject", "span"),
    [
        ("The he-goat, he says", "he", (13, 15)),  # a whole word, not the one inside "The", and its last mention
        ("the Rhine and RHINE falls", "Rhine", (4, 9)),  # in its own spelling before any other
        ("where THE RHINE rises", "the Rhine", (6, 15)),
        ("東京都の人口は", "東京", (0, 2)),  # where no spaces are written
        ("A.C. Milan (club) won", "A.C. Milan (club)", (0, 17)),
        ("  Lima is", " Lima ", (2, 6)),
        ("Lima is", "Rome", None),
        ("Lima is", " ", None),
    ],
)
def test_mentions(prompt: str, subject: str, span: tuple[int, int] | None) -> None:
    assert subject_span(prompt, subject) == span
