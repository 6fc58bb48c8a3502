"""Every format by name, how a record of it is recognised, and what reads it.

A format may have several layouts. A field that malmen does not use is ignored in a published layout and a problem in
malmen's own, where it is most often one misspelt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from malmen_cli.facts.fact import Fact
from malmen_cli.facts.fields import kind, refuse
from malmen_cli.facts.formats.counterfact import compact_counterfact, full_counterfact
from malmen_cli.facts.formats.fever import fever_claim, mend_fever
from malmen_cli.facts.formats.knowedit import knowedit
from malmen_cli.facts.formats.zsre import zsre

FactFormat = Literal["jsonl", "csv", "counterfact", "zsre", "knowedit", "fever"]

FORMATS: dict[FactFormat, str] = {
    "jsonl": "malmen's own, as JSON Lines or a JSON array: prompt, target, subject, rephrases, unrelated, tags, source",
    "csv": "the fields of malmen's own as the columns of a CSV file, named in its first row",
    "counterfact": "CounterFact, full (requested_rewrite, ...) or compact (prompt, target_new, locality_prompt, ...)",
    "zsre": "zsRE as published with MALMEN (src, ans, rephrase, loc, loc_ans) and with MEND (alt instead of ans)",
    "knowedit": "KnowEdit, EasyEdit's benchmark: prompt, target_new, rephrase_prompt, locality",
    "fever": "FEVER as published with MEND (prompt, alt, equiv_prompt, unrel_prompt, unrel_ans), or claim and label",
}


@dataclass(frozen=True)
class _Layout:
    format: FactFormat
    marks: frozenset[str]  # a record with any of these fields is of this layout,
    read: Callable[[Mapping[str, object]], Fact]
    unless: frozenset[str] = frozenset()  # but not with any of these

    def fits(self, row: Mapping[str, object]) -> bool:
        return not self.marks.isdisjoint(row) and self.unless.isdisjoint(row)


# The first that fits a record reads it; malmen's own come last, since others have a 'prompt' too.
_LAYOUTS = (
    _Layout("counterfact", frozenset({"requested_rewrite"}), full_counterfact),
    _Layout(
        "counterfact",
        frozenset({"locality_prompt"}),
        compact_counterfact,
        unless=frozenset({"locality", "src", "target"}),
    ),
    _Layout(
        "counterfact", frozenset({"target_new"}), compact_counterfact, unless=frozenset({"locality", "portability"})
    ),
    _Layout("knowedit", frozenset({"target_new"}), knowedit, unless=frozenset({"locality_prompt"})),
    _Layout("zsre", frozenset({"src"}), zsre),
    _Layout("fever", frozenset({"equiv_prompt", "unrel_prompt"}), mend_fever),
    _Layout("fever", frozenset({"label"}), fever_claim, unless=frozenset({"target"})),
    _Layout("jsonl", frozenset({"prompt", "target"}), Fact.from_json),
    _Layout("csv", frozenset({"prompt", "target"}), Fact.from_json),
)


def fact_from_row(row: object, format: FactFormat | None = None) -> Fact:
    """The fact that one record holds: a JSON value, or the cells of a CSV row as `csv_records` gives them.

    Args:
        format: the one format it may be in; None for any but CSV.

    Raises:
        BadFacts: with every reason why it holds none.
    """
    if not isinstance(row, Mapping):
        refuse(f"a fact must be an object, not {kind(row)}")
    # Tables of several formats put together have null where a fact has no such field.
    present = {name: value for name, value in row.items() if value is not None}
    row = present if any(layout.fits(present) for layout in _LAYOUTS) else row
    fitting = [layout for layout in _LAYOUTS if layout.fits(row)]
    for layout in fitting:
        if format in (None, layout.format):
            return layout.read(row)
    if fitting:
        refuse(f"not a fact in the {format} format; it looks like {fitting[0].format}")
    marks = dict.fromkeys(f"'{mark}'" for layout in _LAYOUTS for mark in sorted(layout.marks))
    refuse(f"not a fact in any known format: it has none of {', '.join(marks)}")
