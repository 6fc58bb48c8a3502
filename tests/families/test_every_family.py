"""For every family a tiny real model of its class goes the whole way: register, train, apply, eval, diff, revert."""

from __future__ import annotations

import fnmatch
from statistics import mean

import pytest
from family_journey import Journey, first_facts, second_facts, travel
from family_models import FAMILIES, INSPECTED
from tiny_models import LABELS

CASES = [(name, dtype) for name in FAMILIES | INSPECTED for dtype in ("float32", "bfloat16")]
CASES += [("t5_gated", "float16")]  # of which transformers keeps some layers in float32 while it runs
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def journey(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Journey:
    name, dtype = request.param
    return travel(tmp_path_factory.mktemp(name), name, dtype)


def changed(a: dict[str, bytes], b: dict[str, bytes]) -> set[str]:
    assert a.keys() == b.keys()
    return {name for name in a if a[name] != b[name]}


def test_the_last_layers_of_its_kind_are_edited(journey: Journey) -> None:
    family = journey.family
    kinds = {glob: [x for x in journey.layers if fnmatch.fnmatchcase(x.name, glob)] for glob in family.edited}
    assert sum(map(len, kinds.values())) == len(journey.layers)
    assert all(len(layers) == family.blocks for layers in kinds.values())
    assert len({layer.tensor for layer in journey.layers}) == len(journey.layers)


def test_each_layer_is_stored_as_it_is_registered(journey: Journey) -> None:
    for layer in journey.layers:
        d_in, d_out = (16, 32) if layer.name.endswith((".wi", ".wi_0")) else (32, 16)
        assert (layer.d_in, layer.d_out) == (d_in, d_out)
        assert layer.transposed == (journey.family.model_class != "GPT2LMHeadModel")
        assert len(journey.base[layer.tensor]) == d_in * d_out * BYTES[journey.dtype]


def test_an_apply_changes_every_edited_tensor_and_nothing_else(journey: Journey) -> None:
    edited = {layer.tensor for layer in journey.layers}
    for state in (journey.first, journey.both, journey.second):
        assert changed(journey.base, state) == edited
    assert changed(journey.first, journey.both) == edited
    figures = {tensor["tensor"]: tensor for tensor in journey.diff["tensors"]}
    assert figures.keys() == edited
    # An edit that drowned in the rounding of 16 bits would move a few weights only.
    assert all(tensor["share_moved"] >= 0.5 for tensor in figures.values())
    assert journey.diff["files"] == journey.diff["not_in_ledger"] == []


def test_transformers_alone_finds_the_facts_likelier_afterwards(journey: Journey) -> None:
    before, after = journey.judged
    least = 0.01 if journey.family.task == "classification" else 0.1
    assert mean(after) <= mean(before) - least


def test_eval_scores_the_entry_and_a_file(journey: Journey) -> None:
    for report, facts in ((journey.entry_report, first_facts), (journey.file_report, second_facts)):
        count = len(facts(journey.family.task))
        assert report["asked"] == {"edit": count, "rephrase": count, "unrelated": count}
        assert report["left_out"] == {"edit": 0, "rephrase": 0, "unrelated": 0}
        for when in ("before", "after"):
            assert all(0 <= report[when][score] <= 1 for score in ("ES", "GS", "LS"))
    checked = journey.applied.check
    assert checked is not None
    for when, scores in (("before", checked.before), ("after", checked.after)):
        assert journey.entry_report[when]["ES"] == pytest.approx(scores.edit_success)


def test_a_classifier_answers_with_its_labels(journey: Journey) -> None:
    answers = [fact["edit"][when] for fact in journey.entry_report["facts"] for when in ("before", "after")]
    if journey.family.task == "classification":
        assert all(answer["generated"] == answer["answer"] in LABELS and answer["stopped"] for answer in answers)
    else:
        assert not any(answer["answer"] in LABELS for answer in answers)


def test_diff_names_the_facts_and_asks_about_them(journey: Journey) -> None:
    facts = first_facts(journey.family.task)
    assert [fact["prompt"] for fact in journey.diff["facts"]["added"]] == [fact.prompt for fact in facts]
    assert journey.diff["predictions"]["asked"] == 3 * len(facts)


def test_a_plan_foresees_the_second_apply(journey: Journey) -> None:
    additions = journey.superseding.proposal.additions
    assert journey.plan["new"] == len(additions.new) == 2
    assert len(journey.plan["superseded"]) == len(additions.superseding) == 1
    assert journey.plan["active"] == journey.superseding.active == 6
    assert journey.plan["solve"].keys() == {layer.name for layer in journey.layers}
    assert all(fact["residual"] >= 0 and 0 <= fact["leverage"] <= 1 for fact in journey.plan["facts"])


def test_a_second_apply_supersedes_and_its_check_asks_the_older_facts_again(journey: Journey) -> None:
    task = journey.family.task
    [(new, old)] = journey.superseding.proposal.additions.superseding
    assert (new.prompt, old.prompt) == (second_facts(task)[0].prompt, first_facts(task)[0].prompt)
    check = journey.superseding.check
    assert check is not None
    assert check.as_dict()["checked_old"] == 2


def test_reverting_the_first_entry_leaves_what_the_second_alone_would_have_made(journey: Journey) -> None:
    assert journey.second == journey.second_again
    assert journey.second != journey.both


def test_every_file_is_back_after_the_last_revert(journey: Journey) -> None:
    assert journey.restored == journey.registered
    assert [reverted.solved for reverted in journey.reverts] == [True, False]
    assert journey.problems == []
