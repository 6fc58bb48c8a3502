"""zsRE, question answering by zero-shot relation extraction (Levy et al. 2017, arXiv 1706.04115)."""

from __future__ import annotations

from collections.abc import Mapping

from malmen_cli.facts.fact import Fact
from malmen_cli.facts.fields import Fields, refuse
from malmen_cli.facts.formats.published import flat_fact

_NATURAL_QUESTIONS = "nq question:"  # MEND's mark on unrelated prompts, no part of the question


def zsre(row: Mapping[str, object]) -> Fact:
    """As published with MALMEN (target in `ans`) and with MEND (target in `alt`).

    Not kept: `answers` and `pred`, the old answers; `cond`; `portability`.
    """
    given = Fields(row, sparse=True).row
    if "alt" in given and "ans" in given:
        refuse("both 'alt' (MEND) and 'ans' (MALMEN) are given, which of them is the target?")
    if isinstance(unrelated := row.get("loc"), str):
        row = {**row, "loc": unrelated.removeprefix(_NATURAL_QUESTIONS).lstrip()}
    target = next((name for name in ("ans", "alt") if name in given), "alt" if "alt" in row else "ans")
    return flat_fact(row, prompt="src", target=target, rephrases="rephrase", unrelated=("loc", "loc_ans"))
