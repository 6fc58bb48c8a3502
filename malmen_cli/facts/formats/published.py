"""What the published formats share: flat records, answers that may be lists, empty fields that count as left out."""

from __future__ import annotations

import math
from collections.abc import Mapping

from malmen_cli.facts.fact import Fact, Unrelated
from malmen_cli.facts.fields import Fields


def flat_fact(
    row: Mapping[str, object],
    *,
    prompt: str,
    target: str,
    rephrases: str | None = None,
    unrelated: tuple[str, str] | None = None,
    source: str | None = None,
) -> Fact:
    """The fact in a record without nested objects, given the names of its fields.

    Rephrases are a text or a list of texts. An answer is a text or a list of texts, of which the first is taken: where
    published sets list answers, the others are further names or further right answers.

    Raises:
        BadFacts: with everything unusable in these fields.
    """
    fields = Fields(row, sparse=True)
    others: tuple[Unrelated, ...] = ()
    if unrelated and not fields.row.keys().isdisjoint(unrelated):
        others = (Unrelated(fields.text(unrelated[0], strip=str.rstrip), fields.first(unrelated[1])),)
    fact = Fact(
        prompt=fields.text(prompt, strip=str.rstrip),
        target=fields.first(target),
        subject=fields.optional("subject"),
        rephrases=fields.all(rephrases, strip=str.rstrip) if rephrases else (),
        unrelated=others,
        source=numbered_source(fields, source) if source else None,
    )
    fields.check()
    return fact


def numbered_source(fields: Fields, key: str) -> str | None:
    """Where a fact comes from, such as "case_id:21431", from a field that holds a number or a text."""
    number = fields.row.get(key)
    if isinstance(number, float):  # pandas writes a column with gaps so: 7.0, and NaN for a gap
        if math.isnan(number):
            return None
        number = int(number) if number.is_integer() else number
    if isinstance(number, bool) or not isinstance(number, int):
        number = fields.optional(key)
    # Taken as a text once more: with its name before it, it may have become too long.
    return None if number is None else fields.over({key: f"{key}:{number}"}).text(key)
