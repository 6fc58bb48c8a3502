"""Bootstrap intervals over facts, the six scores and their harmonic mean."""

from __future__ import annotations

import math
import random

import pytest

from malmen_cli.evaluation.bootstrap import Column, Score, scores_of
from malmen_cli.evaluation.six_scores import six_scores


def of_facts(*values: float) -> Column:
    return list(enumerate(values))


def test_the_value_is_the_mean_over_prompts_and_the_interval_is_the_same_every_time() -> None:
    column = [(0, 1.0), (0, 0.0), (1, 1.0), (2, 0.5)]
    [score] = scores_of([column], 3)
    assert score is not None and score.value == pytest.approx(0.625)
    assert 0 <= score.low < score.value < score.high <= 1
    assert scores_of([column], 3) == [score]


def test_the_interval_is_that_of_the_normal_approximation_where_facts_are_many() -> None:
    chance, count, share = random.Random(0), 2000, 0.3
    values = [float(chance.random() < share) for _ in range(count)]
    [score] = scores_of([of_facts(*values)], count)
    assert score is not None
    wide = 1.96 * math.sqrt(score.value * (1 - score.value) / count)
    assert (score.value - score.low, score.high - score.value) == pytest.approx((wide, wide), rel=0.1)


def test_prompts_of_one_fact_are_drawn_together() -> None:
    """Ten equal prompts of each fact say no more than one of each."""
    chance = random.Random(1)
    values = [float(chance.random() < 0.5) for _ in range(200)]
    single, ten = scores_of([of_facts(*values), [(i, v) for i, v in enumerate(values) for _ in range(10)]], 200)
    assert single == ten
    [spread] = scores_of([of_facts(*values * 10)], 2000)
    assert single is not None and spread is not None
    assert spread.high - spread.low < 0.5 * (single.high - single.low)


def test_one_fact_alone_and_equal_facts_have_an_interval_without_width() -> None:
    assert scores_of([of_facts(0.25)], 1) == [Score(0.25, 0.25, 0.25)]
    assert scores_of([of_facts(1, 1, 1)], 3) == [Score(1, 1, 1)]
    assert scores_of([[], []], 3) == [None, None]


def test_a_measure_that_few_facts_have_is_of_those() -> None:
    rare, all_of_them = scores_of([[(7, 0.5)], of_facts(*[1.0] * 50)], 50)
    assert (rare, all_of_them) == (Score(0.5, 0.5, 0.5), Score(1, 1, 1))


class TestHarmonicMean:
    def test_is_the_plain_one_of_those_that_are_there(self) -> None:
        halves, ones = of_facts(0.5, 0.5), of_facts(1, 1)
        six = six_scores([ones, ones, halves], [ones, [], halves], 2)
        mean = six.harmonic_mean
        assert mean is not None and (mean.low, mean.value, mean.high) == pytest.approx((5 / 7, 5 / 7, 5 / 7))
        assert six.generalisation.generated is None
        assert six.locality.forced == six.locality.generated == Score(0.5, 0.5, 0.5)

    def test_is_zero_if_one_of_them_is(self) -> None:
        ones = of_facts(1, 1)
        assert six_scores([ones, of_facts(0, 0), ones], [[], [], []], 2).harmonic_mean == Score(0, 0, 0)

    def test_is_none_of_nothing(self) -> None:
        six = six_scores([[], [], []], [[], [], []], 1)
        assert six.harmonic_mean is None
        nothing = {"teacher_forced": None, "generated": None}
        subjects = dict.fromkeys(("reliability", "generalisation", "locality"), nothing)
        assert six.as_dict() == {**subjects, "harmonic_mean": None}

    def test_its_interval_holds_it(self) -> None:
        chance = random.Random(2)
        columns = [of_facts(*(chance.random() for _ in range(60))) for _ in range(6)]
        mean = six_scores(columns[:3], columns[3:], 60).harmonic_mean
        assert mean is not None and mean.low < mean.value < mean.high
