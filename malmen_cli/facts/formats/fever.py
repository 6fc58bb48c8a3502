"""FEVER, fact verification (Thorne et al. 2018, arXiv 1803.05355): claims, and labels such as SUPPORTS and REFUTES.

The prompt is a claim, the target is a label as the file spells it.
"""

from __future__ import annotations

from collections.abc import Mapping

from malmen_cli.facts.fact import Fact
from malmen_cli.facts.fields import Fields
from malmen_cli.facts.formats.published import flat_fact


def mend_fever(row: Mapping[str, object]) -> Fact:
    """As published with MEND and MALMEN: `alt` is the label to be learnt, `equiv_prompt` the claim in other words."""
    return flat_fact(
        row,
        prompt="prompt",
        target="alt",
        rephrases="equiv_prompt",
        unrelated=("unrel_prompt", "unrel_ans"),
        source="id",
    )


def fever_claim(row: Mapping[str, object]) -> Fact:
    """A claim with the label it has in FEVER itself, which calls it `claim`, and nothing besides."""
    prompted = "prompt" in Fields(row, sparse=True).row or "claim" not in row
    return flat_fact(row, prompt="prompt" if prompted else "claim", target="label", source="id")
