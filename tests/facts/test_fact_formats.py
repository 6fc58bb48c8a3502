"""Every published layout is read as it is, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from malmen_cli.errors import BadFacts
from malmen_cli.facts import Fact, Unrelated, read_fact_set
from malmen_cli.facts.formats import fact_from_row

COUNTERFACT = {
    "case_id": 21431,
    "subject": "Kimika Yoshino",
    "prompt": "Kimika Yoshino works as",
    "target_new": "composer",
    "ground_truth": "actor",
    "rephrase_prompt": "Kimika Yoshino is known for",
    "locality_prompt": "Grace Kelly's occupation is",
    "locality_ground_truth": "actor",
}
ZSRE = {"src": "Who?", "rephrase": "Who is it?", "ans": "She", "loc": "what is it", "loc_ans": "That"}


def problems(row: object) -> tuple[str, ...]:
    with pytest.raises(BadFacts) as caught:
        fact_from_row(row)
    return caught.value.problems


class TestPublishedFiles:
    def test_compact_counterfact(self, shared_dir: Path) -> None:
        facts = read_fact_set(shared_dir / "data/formats/counterfact_compact.json")
        assert len(facts) == 20
        assert facts.source == "counterfact_compact.json"
        assert facts.facts[0] == Fact(
            prompt="Kimika Yoshino works as",
            target="composer",
            subject="Kimika Yoshino",
            rephrases=("Kimika Yoshino is known for",),
            unrelated=(Unrelated("Grace Kelly's occupation is", "actor"),),
            source="case_id:21431",
        )

    def test_malmen_zsre(self, shared_dir: Path) -> None:
        facts = read_fact_set(shared_dir / "data/formats/malmen_zsre.json")
        assert len(facts) == 20
        assert facts.facts[0] == Fact(
            prompt="Who is the employer of Carl Sagan?",
            target="British Broadcasting Corporation",
            rephrases=("What is the name of the organization where Carl Sagan works?",),
            unrelated=(Unrelated("what is the tigers name off of aladdin", "Rajah"),),
        )

    def test_mend_zsre(self, shared_dir: Path) -> None:
        facts = read_fact_set(shared_dir / "data/formats/mend_zsre.json")
        assert len(facts) == 20
        assert facts.facts[0] == Fact(
            prompt="When was the inception of IAAF Combined Events Challenge?",
            target="2006",
            subject="IAAF Combined Events Challenge",
            rephrases=("When was the IAAF Combined Events Challenge launched?",),
            unrelated=(Unrelated("what is the name of the last episode of spongebob", "The String"),),
        )

    @pytest.mark.parametrize(
        ("name", "count"),
        [("counterfact/train.json", 8000), ("counterfact/dev.json", 1000), ("zsre/mquake_questions_train.json", 4525)],
    )
    def test_whole_data_sets_lose_nothing(self, shared_dir: Path, name: str, count: int) -> None:
        facts = read_fact_set(shared_dir / "data" / name)
        assert (len(facts), facts.duplicates, facts.conflicts_dropped) == (count, 0, 0)
        assert all(len(fact.rephrases) == len(fact.unrelated) == 1 for fact in facts)

    @pytest.mark.parametrize(
        ("name", "format_name", "second_line"),
        [
            ("counterfact_full.json", "full CounterFact", 27),
            ("knowedit_zsre.json", "EasyEdit/KnowEdit", 36),
            ("knowedit_wiki_recent.json", "EasyEdit/KnowEdit", 65),
            ("fever_mend.json", "FEVER", 11),
        ],
    )
    def test_formats_to_come_are_refused_by_name(
        self, shared_dir: Path, name: str, format_name: str, second_line: int
    ) -> None:
        path = shared_dir / "data/formats" / name
        with pytest.raises(BadFacts) as caught:
            read_fact_set(path)
        assert len(caught.value.problems) == 20
        assert all(f"the {format_name} format" in problem for problem in caught.value.problems)
        assert caught.value.problems[1].startswith(f"{path}:{second_line}: ")

    def test_written_back_in_own_format_it_is_the_same_set(self, shared_dir: Path, tmp_path: Path) -> None:
        facts = read_fact_set(shared_dir / "data/formats/mend_zsre.json")
        own = tmp_path / "own.jsonl"
        own.write_text("".join(fact.canonical_json() + "\n" for fact in facts), encoding="utf-8")
        assert read_fact_set(own).digest == facts.digest


class TestRows:
    def test_formats_may_be_mixed(self, tmp_path: Path) -> None:
        path = tmp_path / "mixed.jsonl"
        rows = [COUNTERFACT, ZSRE, {**ZSRE, "src": "Whom?"}, {"prompt": "p", "target": "t"}]
        path.write_text("\n".join(json.dumps(row) for row in rows))
        prompts = ["Kimika Yoshino works as", "Who?", "Whom?", "p"]
        assert [fact.prompt for fact in read_fact_set(path)] == prompts

    def test_foreign_fields_without_use_are_ignored(self) -> None:
        assert fact_from_row({**ZSRE, "cond": 1, "answers": ["He"], "": "x"}) == fact_from_row(ZSRE)

    @pytest.mark.parametrize("nothing", ["", " ", None])
    def test_foreign_fields_left_empty_are_absent(self, nothing: str | None) -> None:
        row = {**ZSRE, "rephrase": nothing, "loc": nothing, "loc_ans": nothing, "subject": nothing}
        assert fact_from_row(row) == fact_from_row({"src": "Who?", "ans": "She"}) == Fact("Who?", "She")

    def test_mend_mark_is_no_part_of_the_question(self) -> None:
        assert fact_from_row({**ZSRE, "loc": "nq question: what is it"}) == fact_from_row(ZSRE)

    @pytest.mark.parametrize(("case_id", "source"), [(0, "case_id:0"), ("a7", "case_id:a7"), (None, None)])
    def test_source_is_the_case(self, case_id: object, source: str | None) -> None:
        assert fact_from_row({**COUNTERFACT, "case_id": case_id}).source == source

    @pytest.mark.parametrize(
        ("row", "problem"),
        [
            ([], "a fact must be an object, not a list"),
            ({}, "not a fact in any known format: it has neither 'prompt' and 'target', nor 'target_new', nor 'src'"),
            ({**COUNTERFACT, "target_new": ""}, "'target_new' is missing or empty"),
            ({**COUNTERFACT, "case_id": True}, "'case_id' must be text, not true or false"),
            ({**COUNTERFACT, "locality_ground_truth": ""}, "'locality_ground_truth' is missing or empty"),
            ({**ZSRE, "rephrase": ["a"]}, "'rephrase' must be text, not a list"),
            ({**ZSRE, "loc": "nq question:"}, "'loc' is missing or empty"),
            ({**ZSRE, "loc": 3}, "'loc' must be text, not a number"),
            ({"src": "Who?"}, "'ans' is missing or empty"),
            ({"src": "Who?", "alt": ""}, "'alt' is missing or empty"),
            ({**ZSRE, "alt": "He"}, "both 'alt' (MEND) and 'ans' (MALMEN) are given, which of them is the target?"),
        ],
    )
    def test_what_is_wrong_is_said_in_the_files_own_words(self, row: object, problem: str) -> None:
        assert problems(row) == (problem,)
