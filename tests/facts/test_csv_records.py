"""CSV: a table with a header is read as the same facts in malmen's own format would be, and located by its lines."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malmen_cli.errors import BadFacts
from malmen_cli.facts import Fact, FactFormat, FactSet, Unrelated, read_fact_set


def read(content: str | bytes, format: FactFormat | None = None) -> FactSet:
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return read_fact_set("-", format=format, stdin=io.TextIOWrapper(io.BytesIO(data)))


def problems(content: str | bytes, format: FactFormat | None = None) -> list[str]:
    with pytest.raises(BadFacts) as caught:
        read(content, format)
    return list(caught.value.problems)


class TestTables:
    @pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
    @pytest.mark.parametrize("start", ["", "\ufeff", "\n\n", " "])
    def test_marks_endings_and_blank_lines_do_not_matter(self, start: str, newline: str) -> None:
        lines = ["prompt,target,subject", "a b,c,a", "", ",,", '"d, e",f,', "  "]
        assert read(start + newline.join(lines)).facts == (Fact("a b", "c", "a"), Fact("d, e", "f"))

    @pytest.mark.parametrize(
        "table",
        ["target,prompt\nt,p", '"Prompt", "TARGET"\n"p", "t"', "prompt ,target,tags\np,t,", "prompt,target\np ,t"],
    )
    def test_order_case_and_blanks_of_columns_do_not_matter(self, table: str) -> None:
        assert read(table).facts == (Fact("p", "t"),)

    def test_quotes_and_line_breaks_inside_a_cell(self) -> None:
        facts = read('prompt,target\n"Say ""x"",\nthen","y\r\nz"\nThe "red" one,"  it "\n')
        assert facts.facts == (Fact('Say "x",\nthen', "y\r\nz"), Fact('The "red" one', "it"))

    def test_every_column(self) -> None:
        table = (
            "prompt,target,subject,rephrases,unrelated,tags,source\n"
            'p,t,s,"r 1\nr, 2\n\n","[{""prompt"": ""o"", ""target"": ""u""}]",one,here\n'
            'q,t,,"[""[r] 1"", ""r 2""]",,"[""a"",\n""b""]",\n'
        )
        assert read(table).facts == (
            Fact("p", "t", "s", ("r 1", "r, 2"), (Unrelated("o", "u"),), ("one",), "here"),
            Fact("q", "t", rephrases=("[r] 1", "r 2"), tags=("a", "b")),
        )

    def test_only_a_header_is_no_facts(self) -> None:
        assert problems("prompt,target\n") == ["-:1: no facts in this file"]

    def test_json_is_never_taken_for_a_table(self) -> None:
        rows = '{"source":"a",\n"prompt":\n"p", "target":"t"}'
        assert read(f"[{rows}]").facts == (Fact("p", "t", source="a"),)
        assert problems(rows)[0].startswith("-:1: not JSON")
        assert problems('"prompt",\n') == [
            "-:1: unknown column ''; known are prompt, target, subject, rephrases, "
            "unrelated, tags, source; nothing after it was read",
            "-:1: the header names no column 'target'; nothing after it was read",
        ]

    def test_asked_for_the_first_row_must_be_a_header(self) -> None:
        assert problems("a,b,c,d,e,f,g", "csv") == [
            "-:1: unknown column 'a', 'b', 'c', 'd', 'e' and 2 more; known are prompt, target, subject, rephrases, "
            "unrelated, tags, source; nothing after it was read",
            "-:1: the header names no column 'prompt' and no 'target'; nothing after it was read",
        ]
        assert problems('{"prompt": "a", "target": "b"}\n', "csv") == [
            """-:1: not CSV: ',' expected after '"'; nothing after it was read"""
        ]

    def test_a_table_is_not_read_as_another_format(self) -> None:
        assert problems("prompt,target\np,t", "jsonl") == [
            "-:1: not JSON: Expecting value (column 1)",
            "-:2: not JSON: Expecting value (column 1)",
        ]


class TestProblems:
    def test_every_bad_row_has_the_line_it_starts_on(self) -> None:
        rows = [
            "prompt,target,rephrases,unrelated",
            "a,1,,",
            "b,,,",
            '"c\n\nc",2,"x',
            'y",',
            "d,3",
            "e,4,,,",
            'f,5,"[""x"", 6]",',
            'g,6,"[""x"",",',
            "h,7,,x",
            'i,8,,"[{""prompt"": ""x""}]"',
            'j,9,,"[{""prompt"": 1, ""prompt"": 2}]"',
            '"k"k,10,,',
            "a,2,,",
            "l,11,,",
            ",12,x,",
        ]
        assert problems("\n".join(rows)) == [
            "-:3: 'target' is missing or empty",
            "-:8: the header names 4 columns, this row has 2",
            "-:9: the header names 4 columns, this row has 5",
            "-:10: 'rephrases[1]' must be text, not a number",
            "-:11: 'rephrases': not JSON: Expecting value (column 6)",
            """-:12: 'unrelated' must be a JSON list, [{"prompt": "...", "target": "..."}]""",
            "-:13: 'unrelated[0].target' is missing or empty",
            "-:14: 'unrelated': given more than once: 'prompt'",
            """-:15: not CSV: ',' expected after '"'""",
            "-:16: prompt 'a' has target '2' here and '1' at line 2",
            "-:18: 'prompt' is missing or empty",
        ]

    def test_a_quote_that_is_never_closed(self) -> None:
        table = 'prompt,target\na,1\n"b,2\nc,3\n'
        assert problems(table) == ["-:3: not CSV: a quoted cell is never closed; lines 3 to 4 were not read"]

    def test_a_stray_quote_costs_the_rows_up_to_the_next(self) -> None:
        table = 'prompt,target\n"a,1\nb,2\n"c",3\nd,\n'
        assert problems(table) == [
            """-:2: not CSV: ',' expected after '"'; lines 2 to 4 were not read""",
            "-:5: 'target' is missing or empty",
        ]

    def test_a_cell_without_end_takes_no_memory(self) -> None:
        table = 'prompt,target\n"' + "a,1\n" * 40_000 + "b,\n"
        first, second = problems(table)
        assert first.startswith("-:2: not CSV: field larger than field limit (131072); lines 2 to ")
        assert second == "-:40002: 'target' is missing or empty"

    @pytest.mark.parametrize(
        ("header", "problem"),
        [
            (
                "prompt,target,\x1b[2J",
                r"unknown column '\x1b[2j'; known are prompt, target, subject, rephrases, unrelated, tags, source",
            ),
            ("prompt,target,Prompt", "column named more than once: 'prompt'"),
            ("prompt,subject", "the header names no column 'target'"),
        ],
    )
    def test_a_bad_header_is_the_only_problem(self, header: str, problem: str) -> None:
        assert problems(f"{header}\na\nb") == [f"-:1: {problem}; nothing after it was read"]

    def test_bytes_that_are_not_utf8_have_their_line(self) -> None:
        assert problems(b'prompt,target\na,\xff\n"b\n\xfe",1\nc,2') == ["-:2: not UTF-8", "-:3: not UTF-8"]
        assert problems(b"prompt,target,\xff\na,1", "csv") == ["-:1: not UTF-8; nothing after it was read"]

    def test_an_unusable_text_is_refused_as_everywhere(self) -> None:
        assert problems("prompt,target\na\0b,t\n" + "x" * 70_000 + ",t") == [
            "-:2: 'prompt' holds a NUL character",
            "-:3: 'prompt' is 70,000 bytes long, at most 65,536 are allowed",
        ]


class TestAnyTable:
    cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=9).filter(
        str.strip
    )
    facts = st.builds(
        lambda row: Fact.from_json({k: v for k, v in row.items() if v}),
        st.fixed_dictionaries(
            {
                "prompt": cells,
                "target": cells,
                "subject": st.none() | cells,
                "rephrases": st.lists(cells, max_size=2),
                "unrelated": st.lists(st.fixed_dictionaries({"prompt": cells, "target": cells}), max_size=2),
                "tags": st.lists(cells, max_size=2),
            }
        ),
    )

    @given(st.lists(facts, min_size=1, max_size=4, unique_by=lambda fact: fact.prompt), st.sampled_from(["\n", "\r\n"]))
    def test_what_is_written_is_read(self, facts: list[Fact], newline: str) -> None:
        columns = ("prompt", "target", "subject", "rephrases", "unrelated", "tags")
        table = io.StringIO(newline="")
        writer = csv.writer(table, quoting=csv.QUOTE_ALL, lineterminator=newline)
        writer.writerow(columns)
        for fact in facts:
            row = json.loads(fact.canonical_json())
            cells = [row.get(name, "") for name in columns]
            writer.writerow([cell if isinstance(cell, str) else json.dumps(cell) for cell in cells])
        assert list(read(table.getvalue())) == facts

    @given(st.lists(st.text('ab",[]{}:\n\r\0 \ud800', max_size=12), max_size=5), st.binary(max_size=5), st.booleans())
    def test_read_or_refused(self, lines: list[str], end: bytes, forced: bool) -> None:
        header = "" if forced else "prompt,target,rephrases,unrelated\n"
        data = (header + "\n".join(lines)).encode("utf-8", "surrogatepass") + end
        try:
            facts = read(data, "csv" if forced else None)
        except BadFacts as error:
            assert error.problems
            assert all(problem.startswith("-:") for problem in error.problems)
        else:
            for fact in facts:
                assert Fact.from_json(json.loads(fact.canonical_json())) == fact


@pytest.mark.parametrize("text", ["prompt;target\na;b\n", "Question,Answer\na,b\n"])
def test_a_table_by_its_name_is_told_how_a_table_must_look(tmp_path: Path, text: str) -> None:
    file = tmp_path / "facts.csv"
    file.write_text(text)
    with pytest.raises(BadFacts) as caught:
        read_fact_set(file)
    assert "JSON" not in str(caught.value.problems) and "names no column" in str(caught.value.problems)
    assert "prompt,target, and commas separate them" in str(caught.value.remedy)
    file.write_text('{"prompt": "a", "target": "b"}\n')  # whose name lies
    assert len(read_fact_set(file)) == 1
