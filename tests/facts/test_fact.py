"""One fact: checking, canonical JSON, digests, and showing text safely."""

from __future__ import annotations

import json
import unicodedata
from hashlib import sha256
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malmen_cli.errors import BadFacts
from malmen_cli.facts import MAX_TEXT_BYTES, Fact, FactSet, Unrelated, printable

CAPITAL = {
    "prompt": "The capital of France is",
    "target": "Lyon",
    "subject": "France",
    "rephrases": ["France's capital is", "France is governed from"],
    "unrelated": [{"prompt": "The capital of Spain is", "target": "Madrid"}],
    "tags": ["geography"],
    "source": "an atlas",
}

letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
words = st.text(letters, min_size=1, max_size=20).filter(str.strip)
own_rows = st.fixed_dictionaries(
    {"prompt": words, "target": words},
    optional={
        "subject": words,
        "rephrases": st.lists(words, max_size=3),
        "unrelated": st.lists(st.fixed_dictionaries({"prompt": words, "target": words}), max_size=3),
        "tags": st.lists(words, max_size=3),
        "source": words,
    },
)

BIDI_CONTROLS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}  # Unicode's bidirectional classes


def problems(row: dict[str, object]) -> tuple[str, ...]:
    with pytest.raises(BadFacts) as caught:
        Fact.from_json(row)
    return caught.value.problems


class TestCanonicalJson:
    @given(own_rows)
    def test_round_trip(self, row: dict[str, object]) -> None:
        fact = Fact.from_json(row)
        again = Fact.from_json(json.loads(fact.canonical_json()))
        assert again == fact
        assert again.canonical_json() == fact.canonical_json()

    @given(own_rows, st.randoms())
    def test_digest_does_not_depend_on_key_order(self, row: dict[str, object], random: Random) -> None:
        items = list(row.items())
        random.shuffle(items)
        assert Fact.from_json(dict(items)).digest == Fact.from_json(row).digest

    @given(own_rows, own_rows)
    def test_digests_differ_where_facts_differ(self, row: dict[str, object], other: dict[str, object]) -> None:
        a, b = Fact.from_json(row), Fact.from_json(other)
        assert (a.digest == b.digest) == (a == b)
        assert (a.edit_digest == b.edit_digest) == ((a.prompt, a.target, a.subject) == (b.prompt, b.target, b.subject))

    def test_spelling_is_fixed_for_ever(self) -> None:
        """Ledgers hold these digests: this golden must never change."""
        fact = Fact.from_json({"target": " Łódź ", "prompt": "Where is it? ", "tags": [], "subject": None})
        assert fact.canonical_json() == '{"prompt":"Where is it?","target":"Łódź"}'
        assert fact.digest == "sha256:" + sha256(fact.canonical_json().encode()).hexdigest() == fact.edit_digest
        assert fact.digest == "sha256:2d859f6cc6bb48437d7aceb089973518c6a0c8b3dfe1ea62bc83fbe115049215"

    @pytest.mark.parametrize("field", ["rephrases", "unrelated", "tags", "source"])
    def test_edit_digest_ignores_what_the_rows_do_not_depend_on(self, field: str) -> None:
        whole, less = Fact.from_json(CAPITAL), Fact.from_json({k: v for k, v in CAPITAL.items() if k != field})
        assert whole.edit_digest == less.edit_digest
        assert whole.digest != less.digest

    @pytest.mark.parametrize("field", ["prompt", "target", "subject"])
    def test_edit_digest_depends_on_the_rest(self, field: str) -> None:
        assert Fact.from_json(CAPITAL).edit_digest != Fact.from_json({**CAPITAL, field: "other"}).edit_digest

    def test_fact_set_digest_is_of_facts_and_order_alone(self) -> None:
        a, b = Fact("a", "1"), Fact("b", "2")
        assert FactSet((a, b), "x").digest == FactSet((a, b), "-", duplicates=3).digest
        assert FactSet((a, b), "x").digest != FactSet((b, a), "x").digest
        assert list(FactSet((a, b), "x")) == [a, b]


class TestFromJson:
    def test_every_field(self) -> None:
        assert Fact.from_json(CAPITAL) == Fact(
            prompt="The capital of France is",
            target="Lyon",
            subject="France",
            rephrases=("France's capital is", "France is governed from"),
            unrelated=(Unrelated("The capital of Spain is", "Madrid"),),
            tags=("geography",),
            source="an atlas",
        )

    def test_outer_space_goes_but_not_a_prompts_indent(self) -> None:
        fact = Fact.from_json({"prompt": "  x is \n", "target": "\ty ", "rephrases": [" z \t"]})
        assert fact == Fact("  x is", "y", rephrases=(" z",))

    def test_repeats_within_a_record_are_dropped(self) -> None:
        other = {"prompt": "p", "target": "t"}
        fact = Fact.from_json({**other, "rephrases": ["b", "a", "b "], "unrelated": [other, other], "tags": ["x", "x"]})
        assert fact == Fact("p", "t", rephrases=("b", "a"), unrelated=(Unrelated("p", "t"),), tags=("x",))

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"prompt": " \n"}, "'prompt' is missing or empty"),
            ({"target": None}, "'target' must be text, not null"),
            ({"target": 7}, "'target' must be text, not a number"),
            ({"target": True}, "'target' must be text, not true or false"),
            ({"target": ["Lyon"]}, "'target' must be text, not a list"),
            ({"subject": {}}, "'subject' must be text, not an object"),
            ({"subject": ""}, "'subject' is missing or empty"),
            ({"source": "a\0b"}, "'source' holds a NUL character"),
            ({"prompt": "a\ud800"}, "'prompt' holds half of a surrogate pair, which is not a character"),
            ({"rephrases": "x"}, "'rephrases' must be a list, not text"),
            ({"rephrases": ["x", 1]}, "'rephrases[1]' must be text, not a number"),
            ({"tags": [""]}, "'tags[0]' is missing or empty"),
            ({"unrelated": ["x"]}, "'unrelated[0]' must be an object, not text"),
            ({"unrelated": [{"prompt": "x"}]}, "'unrelated[0].target' is missing or empty"),
            (
                {"unrelated": [{"prompt": "x", "target": "y", "answer": "z"}]},
                "unknown field 'unrelated[0].answer'; known are prompt, target",
            ),
            (
                {"rephrase": "x", "\x1b[2J": 1},
                r"unknown field 'rephrase', '\x1b[2J'; known are prompt, target, subject, rephrases, unrelated, tags, "
                "source",
            ),
        ],
    )
    def test_what_is_wrong_is_said(self, change: dict[str, object], problem: str) -> None:
        assert problems({**CAPITAL, **change}) == (problem,)

    def test_everything_wrong_is_said_at_once(self) -> None:
        assert len(problems({"prompt": 1, "target": "", "tags": 2, "oops": 3})) == 4

    @pytest.mark.parametrize("letter", ["a", "é"])
    def test_size_limit_is_in_bytes(self, letter: str) -> None:
        most = MAX_TEXT_BYTES // len(letter.encode())
        assert len(Fact.from_json({"prompt": letter * most, "target": "t"}).prompt) == most
        size = MAX_TEXT_BYTES + len(letter.encode())
        reason = f"'prompt' is {size:,} bytes long, at most 65,536 are allowed"
        assert problems({"prompt": letter * (most + 1), "target": "t"}) == (reason,)


class TestPrintable:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("plain, Łódź, 東京, [red]", "plain, Łódź, 東京, [red]"),
            ("\x1b[2J\r\n\t\x9b", r"\x1b[2J\x0d\x0a\x09\x9b"),
            ("user\u202egnp.exe\u2066", r"user\u202egnp.exe\u2066"),
            ("a\ud800b", r"a\ud800b"),
        ],
    )
    def test_escapes_only_what_is_unsafe(self, text: str, shown: str) -> None:
        assert printable(text) == shown

    @given(st.text(st.characters()), st.integers(1, 80))
    def test_never_unsafe_never_too_long(self, text: str, limit: int) -> None:
        shown = printable(text, limit)
        shown.encode()
        assert len(shown) <= limit
        assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cs", "Zl", "Zp"}
        assert not {unicodedata.bidirectional(c) for c in shown} & BIDI_CONTROLS

    def test_limit(self) -> None:
        assert printable("abcdef", 6) == "abcdef"
        assert printable("abcdefg", 6) == "abcde…"
        assert printable("x" * 1000, None) == "x" * 1000
