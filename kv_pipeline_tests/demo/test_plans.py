from __future__ import annotations

from dataclasses import replace

import pytest

from kv_pipeline.demo import BENCHMARK, EXAMPLE, fleet
from kv_pipeline.demo.plans import Event, Turn, plans_of
from kv_pipeline.demo.wording import seeded


@pytest.mark.parametrize("profile", ["fixed-5m", "fixed-1h", "older-5m"])
def test_example_follows_the_planted_plans(profile):
    plans = plans_of(EXAMPLE, profile, seeded(0))
    assert len(plans) == EXAMPLE.conversations
    assert any(isinstance(step, Event) for plan in plans for step in plan.steps)


def test_more_conversations_than_plants_are_ordinary():
    plans = plans_of(replace(EXAMPLE, conversations=5), "fixed-5m", seeded(0))
    assert [len(plan.steps) for plan in plans[2:]] == [EXAMPLE.turns] * 3


def test_ordinary_conversations_end_with_an_answer_and_start_one_helper():
    for plan in plans_of(BENCHMARK, "fixed-5m", seeded(0)):
        turns = [step for step in plan.steps if isinstance(step, Turn)]
        assert len(turns) == BENCHMARK.turns
        assert turns[-1].reply == "answer"
        assert [turn.children[0].kind for turn in turns if turn.children] == ["Explore"]
        assert plan.turns > BENCHMARK.turns


def test_a_fleet_is_as_long_as_asked_on_average_and_mostly_shorter():
    lengths = [
        sum(isinstance(step, Turn) for step in plan.steps)
        for user in range(20)
        for plan in plans_of(fleet(conversations=50, turns=20), "fixed-5m", seeded(user))[2:]
    ]
    assert sum(lengths) / len(lengths) == pytest.approx(20, rel=0.1)
    assert sorted(lengths)[len(lengths) // 2] < 17
    assert max(lengths) > 80


@pytest.mark.parametrize("profile", ["fixed-5m", "older-5m"])
def test_long_conversations_of_a_fleet_stay_within_the_context(profile):
    plans = plans_of(fleet(conversations=40, turns=200), profile, seeded(0))[2:]
    stretches = []
    for plan in plans:
        stretches.append(0)
        for step in plan.steps:
            if step is Event.COMPACT:
                stretches.append(0)
            else:
                stretches[-1] += 1
    assert max(stretches) == 135  # (150,000 - 15,000) / 1,000
    assert (len(stretches) > len(plans)) == (profile == "fixed-5m")
