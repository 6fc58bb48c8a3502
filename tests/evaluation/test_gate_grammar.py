"""Gates: every expression is either what it says or refused with the place; a verdict holds exactly where it should."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from malmen_cli.cli.gates import print_gates
from malmen_cli.errors import UsageError
from malmen_cli.evaluation.gates import MEASURES, NAMES, Gate, Gates, parse_gates
from malmen_cli.evaluation.verdicts import WORST, Figure, Shortfall, Verdict, Verdicts
from malmen_cli.facts import Prompts

blanks = st.text(" \t", max_size=3)
PROMPTS = Prompts(("a", "b"), "prompts.txt")


@st.composite
def spelt(draw: st.DrawFn) -> tuple[list[Gate], str]:
    """Gates, and one of the ways to write them."""
    gates, words = [], []
    for name in draw(st.lists(st.sampled_from(sorted(NAMES)), min_size=1, unique=True)):
        hundredths = draw(st.integers(0, 99))
        above = draw(st.booleans())
        number = draw(st.sampled_from([f"{hundredths}%", f"0.{hundredths:02}", f"{hundredths}.0 %"]))
        shown = name if draw(st.booleans()) else name.lower()
        gates.append(Gate(name, above, hundredths / 100))
        op = ">" if above else ">="
        a, b, c, d = (draw(blanks) for _ in range(4))
        words.append(f"{a}{shown}{b}{op}{c}{number}{d}")
    return gates, ",".join(words)


class TestGrammar:
    @given(spelt())
    def test_an_expression_is_what_it_says(self, written: tuple[list[Gate], str]) -> None:
        gates, text = written
        assert list(parse_gates(text)) == gates

    @given(spelt())
    def test_a_gate_as_it_is_shown_is_itself_again(self, written: tuple[list[Gate], str]) -> None:
        gates, _ = written
        assert list(parse_gates(",".join(map(str, gates)))) == gates

    @given(st.text("ESGLOD_>=<0.159%, ", max_size=20) | st.text(max_size=30))
    @example("ES>=1e400")
    @example("ES>=\u0660.\u0665")  # digits, but not these
    @example("ES>=" + "9" * 5000)
    def test_anything_is_gates_or_refused_in_words(self, text: str) -> None:
        try:
            gates = parse_gates(text)
        except UsageError as error:
            assert "--require" in error.message and "character" in error.message and error.remedy
        else:
            assert gates and all(gate.name in NAMES and 0 <= gate.limit <= 1 for gate in gates)

    @pytest.mark.parametrize(
        ("text", "place", "why"),
        [
            ("", 1, "missing"),
            ("ES>=0.9,", 9, "missing"),
            ("ES>=0.9, XS>=0.9", 10, "no gate 'XS'"),
            (">=0.9", 1, "begins with its name"),
            ("ES=0.9", 3, "after ES"),
            ("ES<=0.9", 3, "after ES"),
            ("ES =>0.9", 4, "after ES"),
            ("ES", 3, "after ES"),
            ("LS>=0.5,ES >= x", 15, "a number"),
            ("ES>=-1", 5, "a number"),
            ("ES>=0.5 LS>=0.5", 5, "a number"),
            ("ES>=nan", 5, "a number"),
            ("ES>=95", 5, "95% may be meant"),
            ("ES>=101%", 5, "above 1"),
            ("ES>1", 3, "nothing is above 1"),
            ("ES>=0.5,es>=0.6", 9, "twice"),
        ],
    )
    def test_a_bad_one_is_refused_with_its_place(self, text: str, place: int, why: str) -> None:
        with pytest.raises(UsageError) as refused:
            parse_gates(text)
        assert f"at character {place}," in refused.value.message and why in refused.value.message

    def test_every_measure_is_there_for_each_group(self) -> None:
        assert len(NAMES) == 3 * len(MEASURES) + 1
        assert [gate.groups for gate in parse_gates("ES>=0,OLD_ES>=0,NEW_LS_GENERATED>=0,PROTECTED>=0")] == [
            ("new", "old"),
            ("old",),
            ("new",),
            ("protected",),
        ]


class TestProtection:
    def test_prompts_alone_must_all_stay(self) -> None:
        found = Gates.of((), PROMPTS)
        assert found is not None and [str(gate) for gate in found.gates] == ["PROTECTED>=1"]
        found = Gates.of(parse_gates("ES>=0.5"), PROMPTS)
        assert found is not None and [str(gate) for gate in found.gates] == ["ES>=0.5", "PROTECTED>=1"]

    def test_unless_a_gate_says_otherwise(self) -> None:
        found = Gates.of(parse_gates("PROTECTED>=90%"), PROMPTS)
        assert found is not None and [str(gate) for gate in found.gates] == ["PROTECTED>=0.9"]

    def test_a_gate_needs_prompts_and_nothing_is_no_gates(self) -> None:
        assert Gates.of((), None) is None
        with pytest.raises(UsageError, match="PROTECTED"):
            Gates.of(parse_gates("PROTECTED>=0.9"), None)


def figure(*values: float) -> Figure:
    found = Figure()
    for place, value in enumerate(values):
        found.add(Shortfall("edit", f"prompt {place}", "wanted", "said", value, None))
    return found


def partly(*values: float, left_out: int) -> Figure:
    """A figure of these values, and of prompts that do not fit the model."""
    found = figure(*values)
    found.left_out = left_out
    return found


def fails(text: str, *, old_facts: bool, **figures: Figure) -> list[str]:
    [gate] = parse_gates(text)
    return list(Verdict.of(gate, figures, old_facts=old_facts).failed)  # type: ignore[arg-type]


class TestVerdicts:
    def test_the_mean_decides_of_each_group_by_itself(self) -> None:
        assert fails("ES>=0.5", old_facts=True, new=figure(1, 0), old=figure(1, 1)) == []
        assert fails("ES>=0.5", old_facts=True, new=figure(1, 0, 0), old=figure(1, 1)) == ["new"]
        assert fails("ES>=0.5", old_facts=True, new=figure(1, 1), old=figure(0)) == ["old"]
        assert fails("ES>0.5", old_facts=True, new=figure(1, 0), old=figure(0)) == ["new", "old"]

    def test_sums_of_fractions_reach_the_limit(self) -> None:
        thirds = figure(*[1 / 3, 2 / 3] * 50, *[0.1] * 100, *[0.9] * 100)
        assert fails("NEW_ES>=50%", old_facts=False, new=thirds) == []
        assert fails("NEW_ES>50%", old_facts=False, new=thirds) == ["new"]

    def test_what_cannot_be_asked_of_new_facts_fails(self) -> None:
        assert fails("GS>=0", old_facts=True, new=figure(), old=figure(1)) == ["new"]
        assert fails("PROTECTED>=0", old_facts=True, protected=figure()) == ["protected"]

    def test_old_facts_without_prompts_stop_only_a_gate_on_them(self) -> None:
        assert fails("GS>=0", old_facts=True, new=figure(1), old=figure()) == []
        assert fails("OLD_GS>=0", old_facts=True, old=figure()) == ["old"]
        assert fails("OLD_GS>=0", old_facts=False, old=figure()) == []

    @pytest.mark.parametrize("text", ["GS>=0.9", "OLD_GS>=0.9"])
    def test_prompts_that_do_not_fit_the_model_are_no_excuse(self, text: str) -> None:
        new = {} if text.startswith("OLD") else {"new": figure(1)}
        assert fails(text, old_facts=True, **new, old=partly(left_out=3)) == ["old"]
        assert fails(text, old_facts=True, **new, old=partly(1, left_out=99)) == ["old"]
        # Wrong answers to them would make no difference here.
        assert fails(text, old_facts=True, **new, old=partly(*[1] * 99, left_out=1)) == []

    def test_what_was_left_out_is_in_the_table_where_anything_was(self, capsys: pytest.CaptureFixture[str]) -> None:
        [gate] = parse_gates("GS>=0.9")
        for old, lines in (
            (figure(1), ["gates    of             asked  figure", "GS>=0.9  earlier facts  1      1.0000  holds"]),
            (
                partly(1, left_out=3),
                [
                    "gates    of             asked  left out  figure",
                    "GS>=0.9  earlier facts  1      3         0.2500  fails",
                ],
            ),
            (
                partly(left_out=3),
                [
                    "gates    of             asked  left out  figure",
                    "GS>=0.9  earlier facts  0      3         -       fails",
                ],
            ),
        ):
            print_gates(Verdicts([Verdict.of(gate, {"new": figure(1), "old": old}, old_facts=True)], None).as_dict())
            out = capsys.readouterr().out.splitlines()
            assert [out[0], out[2]] == lines

    @given(st.lists(st.integers(0, 4).map(lambda quarters: quarters / 4), max_size=20))
    def test_the_worst_are_named_the_first_ones_first(self, values: list[float]) -> None:
        short = [(value, place) for place, value in enumerate(values) if value < 1]
        worst = [f"prompt {place}" for _, place in sorted(short)][:WORST]
        assert [found.prompt for found in figure(*values).worst] == worst

    def test_the_ledger_gets_figures_without_prompts(self) -> None:
        [gate] = parse_gates("NEW_ES>=0.75")
        verdicts = Verdicts([Verdict.of(gate, {"new": figure(1, 0)}, old_facts=False)], None)
        kept = {"value": 0.5, "asked": 2, "left_out": 0, "holds": False}
        assert verdicts.as_dict(worst=False) == {
            "hold": False,
            "gates": [{"gate": "NEW_ES>=0.75", "limit": 0.75, "holds": False, "figures": {"new": kept}}],
        }
        [said] = verdicts.as_dict()["gates"]
        assert [found["prompt"] for found in said["figures"]["new"]["worst"]] == ["prompt 1"]

    def test_the_words_say_by_how_much(self) -> None:
        [gate] = parse_gates("NEW_LS>=0.75")
        verdict = Verdict.of(gate, {"new": figure(1, 0)}, old_facts=False)
        assert verdict.words("new") == "NEW_LS>=0.75 is 0.5000 of 2 unrelated prompts of new facts, 0.25 short"
        empty = Verdict.of(gate, {"new": Figure()}, old_facts=False)
        assert empty.words("new") == "NEW_LS>=0.75 cannot be asked: there are no unrelated prompts of new facts"
        none = Verdict.of(gate, {"new": Figure(left_out=3)}, old_facts=False)
        asked = "NEW_LS>=0.75 cannot be asked: none of 3 unrelated prompts of new facts fits the model"
        assert none.words("new") == asked
        some = Verdict.of(gate, {"new": partly(1, left_out=3)}, old_facts=False)
        assert some.words("new") == (
            "NEW_LS>=0.75 is 0.2500 of 4 unrelated prompts of new facts, 0.5 short; 3 of them do not fit the model and "
            "count as 0"
        )
