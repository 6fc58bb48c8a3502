"""Every published layout is read as it is, and no other where one format is asked for."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malmen_cli.errors import BadFacts
from malmen_cli.facts import FORMATS, MAX_TEXT_BYTES, Fact, FactFormat, Unrelated, read_fact_set
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
FULL = {
    "case_id": 7,
    "pararel_idx": 1,
    "requested_rewrite": {
        "prompt": "{} was formed in",
        "relation_id": "P740",
        "target_new": {"str": "Leeds", "id": "Q39121"},
        "target_true": {"str": "Philadelphia", "id": "Q1345"},
        "subject": "Quirk Books",
    },
    "paraphrase_prompts": ["Quirk Books, that was created in", "Quirk Books comes from"],
    "neighborhood_prompts": ["Kindred the Family Soul started in", "Ween was founded in"],
    "attribute_prompts": ["Gang of Four was formed in"],
    "generation_prompts": ["Quirk Books is renowned for"],
}
KNOWEDIT = {
    "subject": "Alfhild Tamm",
    "prompt": "The occupation of Alfhild Tamm is",
    "target_new": "painter",
    "ground_truth": ["psychiatrist"],
    "rephrase_prompt": "Alfhild Tamm worked as a",
    "locality": {
        "Relation_Specificity": [
            {"prompt": "Alfhild Tamm was born in", "ground_truth": [["Tveta", "Tveta parish"], ["Sweden"]]},
            {"prompt": "Alfhild Tamm's award is", "ground_truth": [[], ["Honorary Doctor"]]},
            {"prompt": "Alfhild Tamm's child is", "ground_truth": [[]]},
        ],
        "Forgetfulness": [{"prompt": "Besides, Alfhild Tamm was a", "ground_truth": ["physician", "doctor"]}],
    },
    "portability": {"Reasoning": [{"prompt": "Alfhild Tamm held a", "ground_truth": "brush"}]},
}
FEVER = {
    "prompt": "Soul Food is a film.",
    "equiv_prompt": ["There is a film Soul Food.", "Soul Food was filmed."],
    "unrel_prompt": "Homeland is a song.",
    "alt": "REFUTES",
    "unrel_ans": "SUPPORTS",
}
CLAIM = {"prompt": "Soul Food is a film.", "label": "SUPPORTS", "id": 137334}
OWN = {"prompt": "p", "target": "t"}
ROWS: dict[str, dict[str, object]] = {
    "full": FULL,
    "compact": COUNTERFACT,
    "zsre": ZSRE,
    "knowedit": KNOWEDIT,
    "fever": FEVER,
    "claim": CLAIM,
    "own": OWN,
}
FORMAT_OF: dict[str, FactFormat] = {
    "full": "counterfact",
    "compact": "counterfact",
    "zsre": "zsre",
    "knowedit": "knowedit",
    "fever": "fever",
    "claim": "fever",
    "own": "jsonl",
}


def problems(row: object, format: FactFormat | None = None) -> tuple[str, ...]:
    with pytest.raises(BadFacts) as caught:
        fact_from_row(row, format)
    return caught.value.problems


def changed(row: dict[str, object], path: str, value: object) -> dict[str, object]:
    """A copy of `row` with another value at a path such as "locality.Forgetfulness.0.prompt"; ... takes it away."""
    row = deepcopy(row)
    inner: Any = row
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    for step in steps:
        inner = inner[step]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return row


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

    def test_full_counterfact(self, shared_dir: Path) -> None:
        facts = read_fact_set(shared_dir / "data/formats/counterfact_full.json")
        assert len(facts) == 20
        assert facts.facts[1] == Fact(
            prompt="Quirk Books was formed in",
            target="Leeds",
            subject="Quirk Books",
            rephrases=(
                "References\n\nCategory:Boroughs and neighbourhoods of Stavanger Quirk Books, that was created in",
            ),
            unrelated=(Unrelated("Kindred the Family Soul started in", "Philadelphia"),),
            source="case_id:8056",
        )

    def test_full_and_compact_counterfact_are_the_same_facts(self, shared_dir: Path) -> None:
        full, compact = (read_fact_set(shared_dir / f"data/formats/counterfact_{n}.json") for n in ("full", "compact"))
        assert full.digest == compact.digest

    def test_knowedit_zsre(self, shared_dir: Path) -> None:
        facts = read_fact_set(shared_dir / "data/formats/knowedit_zsre.json")
        assert len(facts) == 20
        assert facts.facts[0] == Fact(
            prompt="Which family does Epaspidoceras belong to?",
            target="Noctuidae",
            subject="Epaspidoceras",
            rephrases=("What family are Epaspidoceras?",),
            unrelated=(
                Unrelated("The taxon rank of Epaspidoceras is", "genus"),
                Unrelated("Epaspidoceras taxon rank", "genus"),
            ),
        )

    def test_knowedit_wiki_recent(self, shared_dir: Path) -> None:
        facts = read_fact_set(shared_dir / "data/formats/knowedit_wiki_recent.json")
        assert len(facts) == 20
        assert facts.facts[0] == Fact(
            prompt="The gender of Ingrīda Amantova is",
            target="female",
            subject="Ingrīda Amantova",
            unrelated=(
                Unrelated("The place of birth of Ingrīda Amantova is", "Cēsis"),
                Unrelated("The name of the country of citizenship of Ingrīda Amantova is", "Soviet Union"),
                Unrelated("The name of the alma mater of Ingrīda Amantova is", "University of Latvia"),
                Unrelated("The occupation of Ingrīda Amantova is", "luger"),
                Unrelated("The name of the award Ingrīda Amantova won is", "Cross of Recognition"),
            ),
        )
        award = Unrelated("The name of the award Alfhild Tamm won is", "Honorary Doctor at Karolinska Institutet")
        assert award in facts.facts[3].unrelated

    def test_mend_fever(self, shared_dir: Path) -> None:
        facts = read_fact_set(shared_dir / "data/formats/fever_mend.json")
        assert len(facts) == 20
        assert facts.facts[0] == Fact(
            prompt="Fox 2000 Pictures released the film Soul Food.",
            target="REFUTES",
            rephrases=("Fox 2000 Pictures released the film Soul Food.",),
            unrelated=(Unrelated("Murda Beatz's real name is Marshall Mathers.", "REFUTES"),),
        )

    def test_csv(self, shared_dir: Path) -> None:
        facts = read_fact_set(shared_dir / "data/formats/facts.csv")
        assert len(facts) == 20
        assert facts.facts[0] == Fact("Kimika Yoshino works as", "composer", "Kimika Yoshino")
        assert facts.facts[6] == Fact("Chris Langham, of", "Berlin", "Chris Langham")

    def test_sets_that_contradict_themselves_need_a_choice(self, shared_dir: Path) -> None:
        for name, records, contradictions in [("fever/claims_dev", 6666, 2), ("zsre/knowedit_zsre_test", 1304, 10)]:
            path = shared_dir / f"data/{name}.json"
            with pytest.raises(BadFacts) as caught:
                read_fact_set(path)
            assert len(caught.value.problems) == contradictions
            facts = read_fact_set(path, on_conflict="first")
            assert len(facts) + facts.duplicates + facts.conflicts_dropped == records
            assert facts.conflicts_dropped == contradictions

    def test_fever_claims(self, shared_dir: Path) -> None:
        facts = read_fact_set(shared_dir / "data/fever/claims_dev.json", on_conflict="first")
        claim = "Fox 2000 Pictures released the film Soul Food."
        assert facts.facts[0] == Fact(claim, "SUPPORTS", source="id:137334")

    @pytest.mark.parametrize(
        ("name", "format"),
        [
            ("counterfact_full.json", "counterfact"),
            ("counterfact_compact.json", "counterfact"),
            ("knowedit_zsre.json", "knowedit"),
            ("knowedit_wiki_recent.json", "knowedit"),
            ("malmen_zsre.json", "zsre"),
            ("mend_zsre.json", "zsre"),
            ("fever_mend.json", "fever"),
            ("facts.csv", "csv"),
        ],
    )
    def test_the_right_format_changes_nothing_and_a_wrong_one_refuses(
        self, shared_dir: Path, name: str, format: FactFormat
    ) -> None:
        path = shared_dir / "data/formats" / name
        assert read_fact_set(path, format=format) == read_fact_set(path)
        for other in FORMATS:
            if other != format:
                with pytest.raises(BadFacts):
                    read_fact_set(path, format=other)

    def test_written_back_in_own_format_it_is_the_same_set(self, shared_dir: Path, tmp_path: Path) -> None:
        facts = read_fact_set(shared_dir / "data/formats/mend_zsre.json")
        own = tmp_path / "own.jsonl"
        own.write_text("".join(fact.canonical_json() + "\n" for fact in facts), encoding="utf-8")
        assert read_fact_set(own).digest == facts.digest


class TestRows:
    def test_formats_may_be_mixed(self, tmp_path: Path) -> None:
        path = tmp_path / "mixed.jsonl"
        rows = [FULL, COUNTERFACT, ZSRE, KNOWEDIT, FEVER, OWN]
        path.write_text("\n".join(json.dumps(row) for row in rows))
        prompts = ["Quirk Books was formed in", "Kimika Yoshino works as", "Who?"]
        prompts += ["The occupation of Alfhild Tamm is", "Soul Food is a film.", "p"]
        assert [fact.prompt for fact in read_fact_set(path)] == prompts

    def test_full_counterfact(self) -> None:
        assert fact_from_row(FULL) == Fact(
            prompt="Quirk Books was formed in",
            target="Leeds",
            subject="Quirk Books",
            rephrases=("Quirk Books, that was created in", "Quirk Books comes from"),
            unrelated=(
                Unrelated("Kindred the Family Soul started in", "Philadelphia"),
                Unrelated("Ween was founded in", "Philadelphia"),
            ),
            source="case_id:7",
        )

    def test_a_subject_is_put_in_as_it_is(self) -> None:
        row = changed(FULL, "requested_rewrite.subject", "{} {0} \\1 $1")
        assert fact_from_row(row).prompt == "{} {0} \\1 $1 was formed in"

    def test_knowedit(self) -> None:
        assert fact_from_row(KNOWEDIT) == Fact(
            prompt="The occupation of Alfhild Tamm is",
            target="painter",
            subject="Alfhild Tamm",
            rephrases=("Alfhild Tamm worked as a",),
            unrelated=(
                Unrelated("Alfhild Tamm was born in", "Tveta"),
                Unrelated("Alfhild Tamm's award is", "Honorary Doctor"),
                Unrelated("Besides, Alfhild Tamm was a", "physician"),
            ),
        )

    @pytest.mark.parametrize(
        "probes",
        [
            [{"prompt": "a", "ground_truth": "1"}, {"prompt": "b", "ground_truth": "2"}],
            [{"prompt": "a", "ground_truth": ["1", "x"]}, {"prompt": ["b"], "ground_truth": [["2", "x"], ["y"]]}],
            {"prompt": ["a", "b"], "ground_truth": ["1", ["2", "x"]]},
            [{"prompt": ["a", "b"], "ground_truth": [[["1"], ["x"]], "2"]}],
        ],
    )
    def test_knowedit_probes_come_in_several_shapes(self, probes: object) -> None:
        assert fact_from_row({**KNOWEDIT, "locality": {"kind": probes}}).unrelated == (
            Unrelated("a", "1"),
            Unrelated("b", "2"),
        )

    @pytest.mark.parametrize("locality", [{}, None, {"kind": []}, {"kind": None}])
    def test_knowedit_without_probes(self, locality: object) -> None:
        assert fact_from_row({**KNOWEDIT, "locality": locality}).unrelated == ()

    def test_knowedit_may_call_a_rephrase_so(self) -> None:
        row = changed(KNOWEDIT, "rephrase_prompt", ...)
        assert fact_from_row({**row, "rephrase": ["a", "b"]}).rephrases == ("a", "b")

    def test_fever(self) -> None:
        assert fact_from_row(FEVER) == Fact(
            prompt="Soul Food is a film.",
            target="REFUTES",
            rephrases=("There is a film Soul Food.", "Soul Food was filmed."),
            unrelated=(Unrelated("Homeland is a song.", "SUPPORTS"),),
        )
        assert fact_from_row(CLAIM) == Fact("Soul Food is a film.", "SUPPORTS", source="id:137334")
        own = {**changed(CLAIM, "prompt", ...), "claim": CLAIM["prompt"], "verifiable": "VERIFIABLE", "evidence": []}
        assert fact_from_row(own) == fact_from_row(CLAIM)
        assert fact_from_row({**CLAIM, "claim": "another"}) == fact_from_row(CLAIM)
        assert fact_from_row({**CLAIM, "claim": ""}) == fact_from_row(CLAIM)
        assert fact_from_row({**own, "prompt": " "}) == fact_from_row(CLAIM)
        assert problems({**own, "claim": ""}) == ("'claim' is missing or empty",)

    @pytest.mark.parametrize(
        ("row", "field"), [(COUNTERFACT, "target_new"), (ZSRE, "ans"), (KNOWEDIT, "target_new"), (FEVER, "alt")]
    )
    def test_of_a_list_of_answers_the_first_is_the_target(self, row: dict[str, object], field: str) -> None:
        for answers in (["one"], ["", "one", "two"], [[], ["one", "other"], ["two"]]):
            assert fact_from_row({**row, field: answers}).target == "one"

    def test_foreign_fields_without_use_are_ignored(self) -> None:
        assert fact_from_row({**ZSRE, "cond": 1, "answers": ["He"], "": "x"}) == fact_from_row(ZSRE)

    @pytest.mark.parametrize("nothing", ["", " ", None])
    def test_foreign_fields_left_empty_are_absent(self, nothing: str | None) -> None:
        row = {**ZSRE, "rephrase": nothing, "loc": nothing, "loc_ans": nothing, "subject": nothing}
        assert fact_from_row(row) == fact_from_row({"src": "Who?", "ans": "She"}) == Fact("Who?", "She")

    def test_a_blank_field_leaves_the_place_to_another(self) -> None:
        assert fact_from_row({**COUNTERFACT, "rephrase": ""}) == fact_from_row(COUNTERFACT)
        assert fact_from_row({**ZSRE, "alt": " "}) == fact_from_row(ZSRE)

    def test_counterfact_may_ask_what_follows(self) -> None:
        asked = {"Recalled Relation": "(...)", "New Question": "Where?", "New Answer": "There"}
        assert fact_from_row({**COUNTERFACT, "portability": asked}) == fact_from_row(COUNTERFACT)
        assert fact_from_row({**COUNTERFACT, "portability": asked}, "counterfact").unrelated

    def test_mend_mark_is_no_part_of_the_question(self) -> None:
        assert fact_from_row({**ZSRE, "loc": "nq question: what is it"}) == fact_from_row(ZSRE)

    @pytest.mark.parametrize(
        ("case_id", "source"),
        [(0, "case_id:0"), ("a7", "case_id:a7"), (7.0, "case_id:7"), (None, None), (float("nan"), None)],
    )
    def test_source_is_the_case(self, case_id: object, source: str | None) -> None:
        assert fact_from_row({**COUNTERFACT, "case_id": case_id}).source == source

    def test_a_field_that_is_null_does_not_count(self) -> None:
        """Tables of several formats put together have null where a fact has no such field."""
        assert fact_from_row({"src": "Who?", "ans": "She", "alt": None}) == Fact("Who?", "She")
        assert fact_from_row({"prompt": "A is", "target": "B", "target_new": None, "label": None}) == Fact("A is", "B")
        assert problems({"prompt": None, "target": "B"}) == ("'prompt' is missing or empty",)

    @pytest.mark.parametrize(
        ("row", "problem"),
        [
            ([], "a fact must be an object, not a list"),
            (
                {"answer": 1},
                "not a fact in any known format: it has none of 'requested_rewrite', 'locality_prompt', 'target_new', "
                "'src', 'equiv_prompt', 'unrel_prompt', 'label', 'prompt', 'target'",
            ),
            ({**COUNTERFACT, "target_new": ""}, "'target_new' is missing or empty"),
            ({**COUNTERFACT, "case_id": True}, "'case_id' must be text, not true or false"),
            ({**COUNTERFACT, "locality_ground_truth": ""}, "'locality_ground_truth' is missing or empty"),
            ({**ZSRE, "rephrase": ["a", 1]}, "'rephrase[1]' must be text, not a number"),
            ({**ZSRE, "rephrase": [[["a"]]]}, "'rephrase[0][0]' must be text, not a list"),
            ({**ZSRE, "ans": [[]]}, "'ans' is missing or empty"),
            ({**ZSRE, "loc": "nq question:"}, "'loc' is missing or empty"),
            ({**ZSRE, "loc": 3}, "'loc' must be text, not a number"),
            ({"src": "Who?"}, "'ans' is missing or empty"),
            ({"src": "Who?", "alt": ""}, "'alt' is missing or empty"),
            ({**ZSRE, "alt": "He"}, "both 'alt' (MEND) and 'ans' (MALMEN) are given, which of them is the target?"),
        ],
    )
    def test_what_is_wrong_is_said_in_the_files_own_words(self, row: object, problem: str) -> None:
        assert problems(row) == (problem,)

    @pytest.mark.parametrize(
        ("row", "path", "value", "problem"),
        [
            (FULL, "requested_rewrite", 3, "'requested_rewrite' must be an object, not a number"),
            (
                FULL,
                "requested_rewrite.prompt",
                "a band",
                "'requested_rewrite.prompt' must hold '{}', the subject's place, once",
            ),
            (
                FULL,
                "requested_rewrite.prompt",
                "{} or {}",
                "'requested_rewrite.prompt' must hold '{}', the subject's place, once",
            ),
            (FULL, "requested_rewrite.subject", ..., "'requested_rewrite.subject' is missing or empty"),
            (
                FULL,
                "requested_rewrite.target_new",
                "Leeds",
                "'requested_rewrite.target_new' must be an object, not text",
            ),
            (
                FULL,
                "requested_rewrite.target_new.str",
                1,
                "'requested_rewrite.target_new.str' must be text, not a number",
            ),
            (FULL, "requested_rewrite.target_true", ..., "'requested_rewrite.target_true.str' is missing or empty"),
            (FULL, "neighborhood_prompts", [3], "'neighborhood_prompts[0]' must be text, not a number"),
            (FULL, "paraphrase_prompts", {}, "'paraphrase_prompts' must be text, not an object"),
            (FULL, "case_id", "c" * MAX_TEXT_BYTES, "'case_id' is 65,544 bytes long, at most 65,536 are allowed"),
            (KNOWEDIT, "locality", [], "'locality' must be an object, not a list"),
            (KNOWEDIT, "locality.Forgetfulness", "x", "'locality.Forgetfulness' must be a list, not text"),
            (
                KNOWEDIT,
                "locality.Forgetfulness.0",
                {"prompt": ["a", "b"], "ground_truth": ["c"]},
                "'locality.Forgetfulness[0].prompt' is a list of 2: 'ground_truth' must be one of as many",
            ),
            (
                KNOWEDIT,
                "locality.Forgetfulness.0.ground_truth",
                ...,
                "'locality.Forgetfulness[0].ground_truth' is missing or empty",
            ),
            (
                KNOWEDIT,
                "locality.\x1b[2J",
                [{"prompt": "a", "ground_truth": [[True]]}],
                r"'locality.\x1b[2J[0].ground_truth[0][0]' must be text, not true or false",
            ),
            (FEVER, "alt", ..., "'alt' is missing or empty"),
            (FEVER, "alt", 1, "'alt' must be text, not a number"),
            (FEVER, "unrel_ans", None, "'unrel_ans' is missing or empty"),
            (CLAIM, "prompt", "", "'prompt' is missing or empty"),
            (CLAIM, "label", True, "'label' must be text, not true or false"),
        ],
    )
    def test_what_is_wrong_is_said_down_to_the_field(
        self, row: dict[str, object], path: str, value: object, problem: str
    ) -> None:
        assert problems(changed(row, path, value)) == (problem,)

    def test_a_prompt_too_long_only_with_its_subject_is_refused(self) -> None:
        row = changed(FULL, "requested_rewrite.prompt", "{} " + "x" * (MAX_TEXT_BYTES - 5))
        reason = "'requested_rewrite.prompt' is 65,543 bytes long, at most 65,536 are allowed"
        assert problems(row) == (reason,)

    def test_an_own_fact_with_a_label_is_no_claim(self) -> None:
        assert problems({**OWN, "label": "x"})[0].startswith("unknown field 'label'")

    def test_a_locality_prompt_alone_makes_no_other_format(self) -> None:
        assert fact_from_row({**ZSRE, "locality_prompt": "x"}) == fact_from_row(ZSRE)
        assert problems({**OWN, "locality_prompt": "x"})[0].startswith("unknown field 'locality_prompt'")


class TestOneFormat:
    def test_every_format_is_described(self) -> None:
        assert list(FORMATS) == list(get_args(FactFormat))
        assert all(about and "\n" not in about for about in FORMATS.values())

    @pytest.mark.parametrize("layout", ROWS)
    @pytest.mark.parametrize("format", [format for format in FORMATS if format != "csv"])
    def test_a_record_of_another_is_a_problem(self, layout: str, format: FactFormat) -> None:
        row = ROWS[layout]
        if FORMAT_OF[layout] == format:
            assert fact_from_row(row, format) == fact_from_row(row)
        else:
            # Every field of malmen's own is known, so a record that has a 'prompt' is told what else it has.
            reason = (
                "unknown field" if format == "jsonl" and "prompt" in row else f"not a fact in the {format} format; "
            )
            assert problems(row, format)[0].startswith(reason)

    def test_a_record_that_says_little_is_what_it_is_said_to_be(self) -> None:
        row = {"prompt": "p", "target_new": ["t"], "rephrase": "r"}
        for format in (None, "counterfact", "knowedit"):
            assert fact_from_row(row, format) == Fact("p", "t", rephrases=("r",))  # type: ignore[arg-type]

    def test_the_line_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "mixed.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in (ZSRE, OWN, {**ZSRE, "src": "Whom?"}, {})))
        with pytest.raises(BadFacts) as caught:
            read_fact_set(path, format="zsre")
        assert caught.value.problems[0] == f"{path}:2: not a fact in the zsre format; it looks like jsonl"
        assert caught.value.problems[1].startswith(f"{path}:4: not a fact in any known format")


class TestAnyValues:
    """Whatever stands in a published layout's fields, it is read or refused, never anything else."""

    junk = st.recursive(
        st.text(st.characters(), max_size=4)
        | st.none()
        | st.booleans()
        | st.integers()
        | st.sampled_from(["{}", "nq"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(("prompt", "ground_truth", "str", "kind", "subject")), inner, max_size=3)
        ),
        max_leaves=8,
    )

    @staticmethod
    def places(value: object, path: str = "") -> list[str]:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [path[1:]] * bool(path) + [place for k, v in inner for place in TestAnyValues.places(v, f"{path}.{k}")]

    @given(st.sampled_from(list(ROWS)), st.sampled_from([None, *FORMATS]), junk | st.just(...), st.data())
    def test_read_or_refused(self, layout: str, format: FactFormat | None, value: object, data: st.DataObject) -> None:
        row = changed(ROWS[layout], data.draw(st.sampled_from(self.places(ROWS[layout]))), value)
        try:
            fact = fact_from_row(row, format)
        except BadFacts as error:
            assert error.problems
        else:
            assert Fact.from_json(json.loads(fact.canonical_json())) == fact

    def test_deep_nesting(self) -> None:
        deep: object = "x"
        for _ in range(50_000):
            deep = [deep]
        assert problems({**ZSRE, "rephrase": deep}) == ("'rephrase[0][0]' must be text, not a list",)
        assert fact_from_row({**KNOWEDIT, "portability": deep}) == fact_from_row(KNOWEDIT)

    @pytest.mark.parametrize("locality", [None, {}])
    def test_without_probes_rephrases_are_kept(self, locality: object) -> None:
        row = {"prompt": "a", "target_new": "b", "rephrase": ["x", "y"], "locality": locality, "portability": None}
        assert fact_from_row(row) == fact_from_row(row, "knowedit") == Fact("a", "b", rephrases=("x", "y"))
