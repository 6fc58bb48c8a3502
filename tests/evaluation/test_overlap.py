"""What an editor says that it was trained on, and how evaluations use it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tiny_models import make_fact, make_facts

from malmen_cli.evaluation.overlap import MOST, TrainedOn
from malmen_cli.facts import Fact

LESSONS = make_facts(30)


def test_prompts_rephrases_and_subjects_are_known_again() -> None:
    lessons, fact = TrainedOn.of(LESSONS), make_fact(3)
    assert lessons.knows_prompt(fact) and lessons.knows_subject(fact)
    assert lessons.knows_prompt(Fact(fact.rephrases[0], "x"))  # what was a rephrase is the edit prompt here
    assert lessons.knows_prompt(Fact("Another prompt", "x", rephrases=(f"  {fact.prompt.upper()}  ",)))
    other = make_fact(99)
    assert not lessons.knows_prompt(other) and not lessons.knows_subject(other)
    assert not lessons.knows_subject(replace(fact, subject=None))
    assert lessons.known_unrelated([fact, replace(other, unrelated=())]) == len(fact.unrelated)


def test_what_is_written_says_the_same_and_is_small() -> None:
    lessons = TrainedOn.of(LESSONS)
    said = json.loads(json.dumps(lessons.as_dict()))
    assert TrainedOn.from_dict(said) == lessons
    assert len(json.dumps(said)) < 8 * (len(lessons.prompts) + len(lessons.unrelated) + len(lessons.subjects)) + 100
    assert TrainedOn.of([]) == TrainedOn.from_dict(TrainedOn.of([]).as_dict() or {})


def test_of_too_many_nothing_is_kept() -> None:
    many = TrainedOn(frozenset(number.to_bytes(6) for number in range(MOST + 1)), frozenset(), frozenset())
    assert many.as_dict() is None


@pytest.mark.parametrize("damaged", ["abc", "AAAA", "****", 7, None])
def test_what_could_not_have_been_written_is_refused(damaged: object) -> None:
    said = dict(TrainedOn.of(LESSONS).as_dict() or {})
    with pytest.raises((ValueError, TypeError)):
        TrainedOn.from_dict(said | {"prompts": damaged})
    with pytest.raises(KeyError):
        TrainedOn.from_dict({})
