"""Files of prompts: plain text or facts, told apart by what they hold; every bad line is named."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malmen_cli.errors import BadFacts, UsageError
from malmen_cli.facts import MAX_TEXT_BYTES, Prompts, read_prompts


def read(folder: Path, data: str | bytes, *more: str) -> tuple[str, ...]:
    paths = []
    for place, content in enumerate([data, *more]):
        path = folder / f"prompts{place}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        paths.append(path)
    return read_prompts(paths).texts


@pytest.mark.parametrize(
    ("data", "prompts"),
    [
        ("The capital of France is\n\n  The sea \nThe sea\r\n", ("The capital of France is", "  The sea", "The sea")),
        ("\ufeffone\ntwo", ("one", "two")),
        ("one\rtwo\r\r three\r", ("one", "two", " three")),
        ("[INST] who? [/INST]\nand\n", ("[INST] who? [/INST]", "and")),
        ("# no comment\n", ("# no comment",)),
        ("Target, the US retailer, was founded in\n", ("Target, the US retailer, was founded in",)),
        ("Prompt\nProtect\n", ("Prompt", "Protect")),
        ("{name} was born in\n", ("{name} was born in",)),
        ("{} is\n", ("{} is",)),
        ('{"prompt": "a "}\n{"prompt": "b", "target": "x"}\n', ("a", "b")),
        ('{"prompt": "a", "rephrases": ["b", "a"], "unrelated": [{"prompt": "c", "target": "x"}]}', ("a", "b", "c")),
        ('["a", {"prompt": "b"}]', ("a", "b")),
        ("prompt,target\na,x\n", ("a",)),
        ('{"src": "a", "ans": "x", "rephrase": "b", "loc": "c", "loc_ans": "y"}', ("a", "b", "c")),
        # One prompt with two targets is a contradiction among facts, and none here.
        ('{"prompt": "a", "target": "x"}\n{"prompt": "a", "target": "y"}', ("a",)),
    ],
)
def test_what_is_read(tmp_path: Path, data: str, prompts: tuple[str, ...]) -> None:
    assert read(tmp_path, data) == prompts


@pytest.mark.parametrize(
    ("data", "prompts"),
    [
        ('{"prompt": "a", "unrelated": [{"prompt": "b"}, {"prompt": "c", "target": 1}]}', ("a", "b", "c")),
        ('{"prompt": "a", "target": null}', ("a",)),
        ("prompt,subject\na,x\n", ("a",)),
        ('prompt,target,unrelated\na,,"[{""prompt"": ""b""}]"\n', ("a", "b")),
        ('{"src": "a", "rephrase": "b", "loc": "nq question: c"}', ("a", "b", "c")),
        ('{"src": "a", "alt": "x", "ans": "y", "loc": null}', ("a",)),
        ('{"prompt": "a", "rephrase_prompt": "b", "locality_prompt": "c"}', ("a", "b", "c")),
        ('{"prompt": "a", "target_new": "", "locality_prompt": "c", "case_id": 1}', ("a", "c")),
        ('{"prompt": "a", "target_new": "x", "locality_prompt": " ", "locality_ground_truth": ""}', ("a",)),
        ('{"prompt": "a", "equiv_prompt": "b", "unrel_prompt": "c"}', ("a", "b", "c")),
        ('{"prompt": "a", "label": null}', ("a",)),
        (
            '{"prompt": "a", "rephrase": "b", "locality": {"R": [{"prompt": "c", "ground_truth": ["x"]}]}}',
            ("a", "b", "c"),
        ),
        (
            '{"requested_rewrite": {"prompt": "{} is", "subject": "a"}, "neighborhood_prompts": ["b"]}',
            ("a is", "b"),
        ),
    ],
)
def test_targets_may_be_left_out_in_every_format(tmp_path: Path, data: str, prompts: tuple[str, ...]) -> None:
    assert read(tmp_path, data) == prompts


def test_a_table_of_one_column_is_named_csv(tmp_path: Path) -> None:
    file = tmp_path / "prompts.CSV"
    file.write_text('Prompt\n"one, two"\n')
    assert read_prompts([file]).texts == ("one, two",)
    file.write_text("Target\nx\n")
    with pytest.raises(BadFacts) as refused:
        read_prompts([file])
    assert "no column 'prompt'" in refused.value.problems[0]


def test_several_files_are_one_list(tmp_path: Path) -> None:
    assert read(tmp_path, "a\nb\n", '{"prompt": "b"}\n{"prompt": "c"}') == ("a", "b", "c")


@pytest.mark.parametrize(
    ("data", "line", "reason"),
    [
        ("", 1, "no prompts"),
        ("\n  \n", 1, "no prompts"),
        (b"a\n\xff\n", 2, "not UTF-8"),
        ("a\nb\0\n", 2, "NUL"),
        (f"a\n{'x' * (MAX_TEXT_BYTES + 1)}\n", 2, "bytes long"),
        ('{"prompt": "a"}\n{"prompt": 1}\n', 2, "must be text"),
        ('{"prompt": "a"}\n{"promt": "b"}\n', 2, "not a fact"),
        ('{"prompt": "a"}\n{"prompt": "b", "unrelated": [1]}\n', 2, "must be an object"),
        ("target,subject\nx,y\n", 1, "no column 'prompt'"),
        ('{"prompt": "a"}\n{"prompt": "b", "target": "c", "rephrase": "d"}\n', 2, "unknown field"),
        ('{"prompt": "a"\n', 1, "not JSON"),
        ("{'prompt': 'a'}\n", 1, "not JSON"),
        ("prompt,target,sources\na,x,y\n", 1, "unknown column"),
        ('["a", 5]', 1, "neither"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, data: str | bytes, line: int, reason: str) -> None:
    with pytest.raises(BadFacts, match="problem") as refused:
        read(tmp_path, data)
    [problem] = refused.value.problems
    assert problem.startswith(f"{tmp_path / 'prompts0'}:{line}: ")
    assert reason in problem


def test_an_empty_file_beside_a_full_one_is_named_too(tmp_path: Path) -> None:
    with pytest.raises(BadFacts) as refused:
        read(tmp_path, "a\n", "")
    assert refused.value.problems == (f"{tmp_path / 'prompts1'}:1: no prompts in this file",)


def test_a_missing_file_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read_prompts([tmp_path / "nothing"])


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a\nb\n"))
    found = read_prompts(["-"])
    assert (found.texts, found.source, len(found)) == (("a", "b"), "-", 2)


@given(st.lists(st.text(min_size=1), max_size=5), st.lists(st.text(min_size=1), max_size=5))
def test_the_digest_tells_lists_apart(a: list[str], b: list[str]) -> None:
    assert (Prompts(tuple(a), "x").digest == Prompts(tuple(b), "y").digest) == (a == b)
