"""Targets that a record may leave out, where only its prompts are wanted: one stands in for each."""

from __future__ import annotations

from collections.abc import Mapping

_ANY = "any"
_OWN = frozenset({"prompt", "subject", "rephrases", "unrelated", "tags", "source"})  # a fact's, but for the target
_TARGETS = ("target", "target_new", "ans", "alt", "label")

# Where a record has the first of these fields it may lack the second: flat layouts are known by such fields too.
_ANSWERS = (
    ("src", "ans"),
    ("loc", "loc_ans"),
    ("equiv_prompt", "alt"),
    ("unrel_prompt", "alt"),
    ("unrel_prompt", "unrel_ans"),
    ("rephrase_prompt", "target_new"),
    ("locality_prompt", "target_new"),
    ("locality_prompt", "locality_ground_truth"),
    ("locality", "target_new"),
)


def with_any_targets(row: Mapping[str, object]) -> dict[str, object]:
    """The record of any format with a target in every place that wants one, given or not; the prompts as they are.

    Not of KnowEdit's probes: one without an answer says so by an empty list, and is left out.
    """
    found = dict(row)
    for prompt, answer in _ANSWERS:
        if str(row.get(prompt) or "").strip():  # a blank one counts as left out
            found[answer] = _ANY
    if "src" in row:
        found.pop("alt", None)  # MEND's name of the same target
    if row.keys() <= _OWN:
        found["target"] = _ANY
    found |= {name: _ANY for name in _TARGETS if name in found}
    if isinstance(unrelated := row.get("unrelated"), list):
        found["unrelated"] = [item | {"target": _ANY} if isinstance(item, dict) else item for item in unrelated]
    if isinstance(rewrite := row.get("requested_rewrite"), dict):
        found["requested_rewrite"] = rewrite | {"target_new": {"str": _ANY}, "target_true": {"str": _ANY}}
    return found
