"""The layouts a fact may come in, told apart row by row, each with one small reader.

Covered: malmen's own, compact CounterFact, MALMEN and MEND zsRE. Not yet covered, but recognised: full CounterFact,
EasyEdit/KnowEdit, FEVER. A field that malmen does not use is ignored in a foreign row and a problem in an own one.
"""

from __future__ import annotations

from collections.abc import Mapping

from malmen_cli.facts.fact import Fact, Unrelated
from malmen_cli.facts.fields import Fields, kind, refuse

_NATURAL_QUESTIONS = "nq question:"  # MEND's mark on unrelated prompts, no part of the question


def fact_from_row(row: object) -> Fact:
    """The fact that one JSON value holds, in whatever known format.

    Raises:
        BadFacts: with every reason why it holds none.
    """
    if not isinstance(row, Mapping):
        refuse(f"a fact must be an object, not {kind(row)}")
    if "requested_rewrite" in row:
        refuse("the full CounterFact format ('requested_rewrite') is not supported yet")
    if "target_new" in row and ("locality" in row or "portability" in row):
        refuse("the EasyEdit/KnowEdit format ('locality', 'portability') is not supported yet")
    if "equiv_prompt" in row or "unrel_prompt" in row:
        refuse("the FEVER format ('equiv_prompt', 'unrel_prompt') is not supported yet")
    if "target_new" in row:
        return _counterfact(row)
    if "src" in row:
        return _zsre(row, "alt" if "alt" in row else "ans")
    if "prompt" in row or "target" in row:
        return Fact.from_json(row)
    refuse("not a fact in any known format: it has neither 'prompt' and 'target', nor 'target_new', nor 'src'")


def _counterfact(row: Mapping[str, object]) -> Fact:
    """Compact CounterFact (qizhou000/RECIPE): one rephrase, one neighbour; `ground_truth` is the old target."""
    case = row.get("case_id")
    if isinstance(case, int) and not isinstance(case, bool):
        case = str(case)
    return _foreign(
        {**row, "case_id": case},
        prompt="prompt",
        target="target_new",
        rephrase="rephrase_prompt",
        unrelated=("locality_prompt", "locality_ground_truth"),
        source="case_id",
    )


def _zsre(row: Mapping[str, object], target: str) -> Fact:
    """zsRE as published with MALMEN (target in `ans`) and with MEND (in `alt`; `answers` are the old ones)."""
    if "alt" in row and "ans" in row:
        refuse("both 'alt' (MEND) and 'ans' (MALMEN) are given, which of them is the target?")
    if isinstance(unrelated := row.get("loc"), str):
        row = {**row, "loc": unrelated.removeprefix(_NATURAL_QUESTIONS).lstrip()}
    return _foreign(row, prompt="src", target=target, rephrase="rephrase", unrelated=("loc", "loc_ans"))


def _foreign(
    row: Mapping[str, object],
    *,
    prompt: str,
    target: str,
    rephrase: str,
    unrelated: tuple[str, str],
    source: str | None = None,
) -> Fact:
    """The fact in a flat row with the given field names; published sets leave fields they do not have empty."""
    fields = Fields({key: value for key, value in row.items() if not (isinstance(value, str) and not value.strip())})
    other: tuple[Unrelated, ...] = ()
    if any(fields.row.get(key) is not None for key in unrelated):
        other = (Unrelated(fields.text(unrelated[0], strip=str.rstrip), fields.text(unrelated[1])),)
    rephrased = fields.optional(rephrase, strip=str.rstrip)
    number = fields.optional(source) if source else None
    fact = Fact(
        prompt=fields.text(prompt, strip=str.rstrip),
        target=fields.text(target),
        subject=fields.optional("subject"),
        rephrases=() if rephrased is None else (rephrased,),
        unrelated=other,
        source=None if number is None else f"{source}:{number}",
    )
    fields.check()
    return fact
