"""From bytes to a fact set: lines, problems, repeats, contradictions, standard input."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malmen_cli.errors import BadFacts, ExitCode, UsageError
from malmen_cli.facts import Fact, FactSet, OnConflict, Unrelated, read_fact_set, reading
from malmen_cli.facts.prompts import read_prompts


def read(content: str | bytes, on_conflict: OnConflict | None = None) -> FactSet:
    data = content.encode() if isinstance(content, str) else content
    return read_fact_set("-", on_conflict=on_conflict, stdin=io.TextIOWrapper(io.BytesIO(data)))


def problems(content: str | bytes) -> list[str]:
    with pytest.raises(BadFacts) as caught:
        read(content)
    assert caught.value.exit_code == ExitCode.USAGE
    assert caught.value.remedy
    return list(caught.value.problems)


def row(prompt: str, target: str, **more: object) -> str:
    return json.dumps({"prompt": prompt, "target": target, **more})


class TestLayouts:
    def test_lines_array_and_pretty_array_are_the_same(self) -> None:
        rows = [{"prompt": "p", "target": "t"}, {"prompt": "q", "target": "u", "tags": ["x"]}]
        lines = read("\n".join(json.dumps(r) for r in rows))
        assert lines.facts == (Fact("p", "t"), Fact("q", "u", tags=("x",)))
        assert read(json.dumps(rows)) == read(json.dumps(rows, indent=4)) == lines

    @pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n \t\n"])
    @pytest.mark.parametrize("start", ["", "\ufeff", "\n"])
    def test_marks_blank_lines_and_endings_do_not_matter(self, start: str, newline: str) -> None:
        facts = read(f"{start}{row('p', 't')}{newline}{row('q', 'u')}{newline}")
        assert list(facts) == [Fact("p", "t"), Fact("q", "u")]

    def test_line_separators_inside_a_text_do_not_end_a_line(self) -> None:
        assert read('{"prompt": "a\u2028b\x85c", "target": "t"}').facts == (Fact("a\u2028b\x85c", "t"),)

    def test_escaped_surrogate_pairs_are_characters(self) -> None:
        assert read(r'{"prompt": "\ud83d\ude00", "target": "t"}').facts == (Fact("😀", "t"),)

    @pytest.mark.parametrize("content", ["", "\n \n", "[]", "[\n]\n", "\ufeff"])
    def test_no_facts_is_a_problem(self, content: str) -> None:
        assert problems(content) == ["-:1: no facts in this file"]


class TestProblems:
    def test_every_bad_line_is_named_and_no_good_one(self) -> None:
        content = [
            row("a", "1"),
            "{not json",
            row("b", ""),
            "",
            '{"prompt": "c", "target": "3", "target": "4"}',
            row("d", "\ud800"),
            row("e", "5") + "}",
            "[" * 100_000,
            row("a", "2"),
            '"text"',
            row("f", "6"),
            '{"prompt": "g", "target": ' + "9" * 5000 + "}",
        ]
        assert problems("\n".join(content)) == [
            "-:2: not JSON: Expecting property name enclosed in double quotes (column 2)",
            "-:3: 'target' is missing or empty",
            "-:5: given more than once: 'target'",
            "-:6: 'target' holds half of a surrogate pair, which is not a character",
            "-:7: not JSON: more after the end of the record (column 31)",
            "-:8: not a fact: nested too deeply",
            "-:9: prompt 'a' has target '2' here and '1' at line 1",
            "-:10: a fact must be an object, not text",
            "-:12: 'target' must be text, not a number",
        ]

    def test_records_of_a_pretty_array_have_the_line_they_start_on(self) -> None:
        content = json.dumps([{"prompt": "p"}, {"prompt": "q", "target": "t"}, {"target": "\n"}], indent=1)
        assert problems("\n" + content) == [
            "-:3: 'target' is missing or empty",
            "-:10: 'prompt' is missing or empty",
            "-:10: 'target' is missing or empty",
        ]

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ('{"a": 1},\n{"a" 2}]', "not JSON: Expecting ':' delimiter (column 6); nothing after it was read"),
            ('{"a": 1}\n{}]', "not JSON: ',' or ']' must follow a record; nothing after it was read"),
            ('{"a": 1},\n]', "not JSON: Expecting value (column 1); nothing after it was read"),
            ('{"a": 1}\n', "not JSON: ',' or ']' must follow a record; nothing after it was read"),
            ('{"a": 1}]\n[]', "not JSON: more after the end of the list"),
            ('{"a": 1},\n' + "[" * 100_000, "not a fact: nested too deeply; nothing after it was read"),
            ('{"a": 1},\n{"a": {"b": 1, "b": 2}}]', "given more than once: 'b'"),
        ],
    )
    def test_a_broken_array_is_located(self, content: str, problem: str) -> None:
        first, second = problems("[" + content)
        assert first.startswith("-:1: not a fact in any known format")
        assert second == f"-:2: {problem}"

    def test_bytes_that_are_not_utf8_have_their_line(self) -> None:
        good, bad = row("a", "1").encode(), b'{"prompt": "\xff", "target": "t"}'
        assert problems(good + b"\n" + bad + b"\n\xfe\n") == ["-:2: not UTF-8", "-:3: not UTF-8"]
        assert problems(b"[" + good + b",\n" + bad + b",\n\xfe]") == [
            "-:2: not UTF-8",
            "-:3: not UTF-8; nothing after it was read",
        ]

    def test_what_it_quotes_is_escaped(self) -> None:
        lines = [row("\x1b[31m", "\u202e1"), row("\x1b[31m", "2")]
        assert problems("\n".join(lines)) == [r"-:2: prompt '\x1b[31m' has target '2' here and '\u202e1' at line 1"]


class TestRepeats:
    def test_are_merged_into_the_first_and_counted(self) -> None:
        other = {"prompt": "o", "target": "x"}
        facts = read(
            "\n".join(
                [
                    row("p", "t", rephrases=["r1"], tags=["a"]),
                    row("q", "u"),
                    row("p ", " t", rephrases=["r2", "r1"], unrelated=[other], subject="s"),
                    row("p", "t", tags=["b", "a"], source="here", subject="s"),
                ]
            )
        )
        merged = Fact("p", "t", "s", ("r1", "r2"), (Unrelated("o", "x"),), ("a", "b"), "here")
        assert facts == FactSet((merged, Fact("q", "u")), "-", duplicates=2)

    def test_are_found_across_formats(self) -> None:
        facts = read(row("p", "t") + "\n" + json.dumps({"src": "p", "alt": "t", "rephrase": "r"}))
        assert facts == FactSet((Fact("p", "t", rephrases=("r",)),), "-", duplicates=1)


class TestContradictions:
    ROWS = (row("p", "1", tags=["x"]), row("q", "1"), row("p", "2"), row("p", "1"), row("p", "2", tags=["y"]))
    LINES = "\n".join(ROWS)

    def test_name_both_lines_and_the_way_out(self) -> None:
        with pytest.raises(BadFacts) as caught:
            read(self.LINES)
        assert caught.value.problems == (
            "-:3: prompt 'p' has target '2' here and '1' at line 1",
            "-:5: prompt 'p' has target '2' here and '1' at line 1",
        )
        assert caught.value.remedy is not None
        assert "--on-conflict first|last" in caught.value.remedy

    def test_first(self) -> None:
        kept = (Fact("p", "1", tags=("x",)), Fact("q", "1"))
        assert read(self.LINES, "first") == FactSet(kept, "-", duplicates=1, conflicts_dropped=2)

    def test_last(self) -> None:
        assert read(self.LINES, "last") == FactSet((Fact("q", "1"), Fact("p", "2", tags=("y",))), "-", 0, 3)

    def test_two_subjects_for_one_edit(self) -> None:
        lines = "\n".join([row("p", "t"), row("p", "t", subject="a"), row("p", "t", subject="b")])
        assert problems(lines) == ["-:3: prompt 'p' has subject 'b' here and 'a' at line 2"]

    def test_on_conflict_forgives_nothing_else(self) -> None:
        with pytest.raises(BadFacts) as caught:
            read(self.LINES + "\n{}", "last")
        assert len(caught.value.problems) == 1

    small = st.tuples(st.sampled_from("pq"), st.sampled_from("12"), st.sampled_from([None, "a", "b"]))

    @given(st.lists(small, min_size=1), st.sampled_from(["first", "last"]))
    def test_every_record_is_kept_or_counted(
        self, records: list[tuple[str, str, str | None]], on_conflict: OnConflict
    ) -> None:
        facts = read("\n".join(row(p, t, subject=s) for p, t, s in records), on_conflict)
        assert len(facts) + facts.duplicates + facts.conflicts_dropped == len(records)
        assert sorted(fact.prompt for fact in facts) == sorted({p for p, _, _ in records})
        winners = records if on_conflict == "last" else records[::-1]  # in a dictionary the last one wins
        assert {fact.prompt: fact.target for fact in facts} == {p: t for p, t, _ in winners}


class TestSources:
    def test_a_file_is_named_as_given(self, tmp_path: Path) -> None:
        path = tmp_path / "facts.jsonl"
        path.write_text(row("p", "t") + "\n")
        assert read_fact_set(path) == FactSet((Fact("p", "t"),), "facts.jsonl")
        path.write_text("{}")
        with pytest.raises(BadFacts) as caught:
            read_fact_set(path)
        assert caught.value.problems[0].startswith(f"{path}:1: ")

    def test_text_streams_without_bytes_beneath(self) -> None:
        assert read_fact_set("-", stdin=io.StringIO(row("p", "é"))).facts == (Fact("p", "é"),)

    @pytest.mark.parametrize(
        "content", ['{"prompt": "é", "target": "t"}', '[{"prompt": "é", "target": "t"}]', "prompt,target\né,t\n"]
    )
    def test_a_pipe(self, content: str) -> None:
        reading, writing = os.pipe()
        with os.fdopen(reading, encoding="ascii") as stdin:
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(content.encode())
            assert read_fact_set("-", stdin=stdin) == FactSet((Fact("é", "t"),), "-")

    @pytest.mark.parametrize("name", ["missing.jsonl", ".", "a\0b"])
    def test_unreadable_files_are_usage_errors(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(UsageError, match="cannot read") as caught:
            read_fact_set(tmp_path / name)
        assert caught.value.remedy
        assert not isinstance(caught.value, BadFacts)

    def test_more_than_would_be_held_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = (row("p", "t") + "\n").encode()
        (path := tmp_path / "facts.jsonl").write_bytes(data)
        for limit in (len(data), len(data) - 1):
            monkeypatch.setattr(reading, "MOST", limit)
            for read in (
                lambda: read_fact_set(path),
                lambda: read_fact_set("-", stdin=io.TextIOWrapper(io.BytesIO(data))),
                lambda: read_fact_set("-", stdin=io.StringIO(data.decode())),
            ):
                if limit == len(data):
                    assert len(read()) == 1
                else:
                    with pytest.raises(UsageError, match="is larger than"):
                        read()
        with pytest.raises(UsageError, match="/dev/zero is larger than"):
            read_fact_set(Path("/dev/zero"))

    def test_closed_standard_input(self) -> None:
        stream = io.StringIO()
        stream.close()
        with pytest.raises(UsageError, match="cannot read standard input"):
            read_fact_set("-", stdin=stream)


class TestAnyBytes:
    """Whatever a file holds, it is read or refused, never anything else."""

    names = ("prompt", "target", "unrelated", "target_new", "case_id", "src", "alt", "ans", "loc", "loc_ans", "")
    names += ("requested_rewrite", "locality", "equiv_prompt", "unrel_prompt", "label", "id")
    texts = st.text(st.characters(), max_size=8)  # lone surrogates too
    values = st.recursive(
        texts | st.none() | st.booleans() | st.integers() | st.floats(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("prompt", "target")), inner),
        max_leaves=8,
    )
    records = values | st.dictionaries(st.sampled_from(names), texts | values, min_size=1, max_size=5)

    @staticmethod
    def attempt(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "facts")
            path.write_bytes(data)
            try:
                facts = read_fact_set(path)
            except BadFacts as error:
                assert error.problems
                assert all(problem.startswith(f"{path}:") for problem in error.problems)
            else:
                for fact in facts:
                    assert Fact.from_json(json.loads(fact.canonical_json())) == fact

    @given(st.binary(max_size=200) | st.binary(max_size=50).map(b"[".__add__))
    def test_bytes(self, data: bytes) -> None:
        self.attempt(data)

    @given(st.lists(records, max_size=4), st.booleans(), st.data())
    def test_json_with_a_spoilt_byte(self, rows: list[object], as_array: bool, data: st.DataObject) -> None:
        text = json.dumps(rows, indent=1) if as_array else "\n".join(json.dumps(r) for r in rows)
        spoilt = bytearray(text.encode())
        if spoilt and data.draw(st.booleans()):
            spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
        self.attempt(bytes(spoilt))


@pytest.mark.parametrize("read", [read_fact_set, lambda path: read_prompts([path])])
def test_what_is_no_text_is_said_once(tmp_path: Path, read: Callable[[Path], object]) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\x40\0\0\0\0\0\0\0" + b"{" * 2000 + bytes(range(256)) * 50)
    with pytest.raises(BadFacts) as caught:
        read(file)
    assert list(caught.value.problems) == [f"{file}:1: not a text file"]
    file.write_bytes('{"prompt": "a", "target": "b"}\n'.encode("utf-16"))
    with pytest.raises(BadFacts) as caught:
        read(file)
    assert list(caught.value.problems) == [f"{file}:1: not UTF-8 but UTF-16: save it as UTF-8"]
