from __future__ import annotations

from kv_pipeline.core.api_model import Use
from kv_pipeline.core.api_rules import HISTORY
from kv_pipeline.core.explain import Step, explain
from kv_pipeline.core.lengths import LengthBook
from kv_pipeline.core.prompts import Sent
from kv_pipeline.core.scenarios import DESCRIPTIONS, WARM_SHARE, Scenario, what_if
from kv_pipeline_tests.core.bodies import EXACTLY_AS_COUNTED, MARK, Bodies, assistant, body, marked, text, tool, user


def scenarios(*sent, gap_s=10):
    """Read and written tokens of the last request, by scenario."""
    bodies = Bodies()
    requests = Sent([bodies.request(one) for one in sent], bodies.segments)
    tree, prompts = requests.place()
    uses = [
        Use(prompt, one["model"], "ada", "main", n * gap_s, n * gap_s, 0, HISTORY[0], one.get("bill"))
        for n, (one, prompt) in enumerate(zip(sent, prompts, strict=True))
    ]
    lengths = LengthBook(tree, {use.model: EXACTLY_AS_COUNTED for use in uses})
    steps = [Step(request.settings, use, True) for request, use in zip(requests.requests, uses, strict=True)]
    assert len(list(explain(tree, steps, lengths))) == len(steps)
    found = {scenario: list(predictions) for scenario, predictions in what_if(requests, uses, tree, lengths)}
    assert found.keys() == set(Scenario) == DESCRIPTIONS.keys()
    assert all(len(predictions) == len(sent) for predictions in found.values())
    return {scenario: predictions[-1].bill for scenario, predictions in found.items()}


ASKED = user(marked("How do I sort a list of words"))
NEXT = (user(text("How do I sort a list of words")), assistant(text("Call sorted")), user(marked("Thanks")))


def test_nothing_to_gain():
    found = scenarios(body(ASKED), body(*NEXT))
    as_sent = found.pop(Scenario.AS_SENT)
    hour = found.pop(Scenario.LIFETIME_1H)
    assert set(found.values()) == {as_sent}
    assert (hour.read_tokens, hour.write_1h_tokens) == (as_sent.read_tokens, as_sent.write_5m_tokens)


def test_an_hour_bridges_a_gap():
    found = scenarios(body(ASKED), body(*NEXT), gap_s=900)
    assert found[Scenario.AS_SENT].read_tokens == 0
    assert found[Scenario.LIFETIME_1H].read_tokens > 0


def test_stable_tools():
    found = scenarios(body(ASKED, tools=[tool("A"), tool("B")]), body(*NEXT, tools=[tool("B"), tool("A")]))
    assert found[Scenario.AS_SENT].read_tokens == 0
    assert found[Scenario.STABLE_TOOLS].read_tokens > 0


def test_tools_that_were_added_are_not_put_in_order():
    found = scenarios(body(ASKED, tools=[tool("A")]), body(*NEXT, tools=[tool("A"), tool("B")]))
    assert found[Scenario.STABLE_TOOLS].read_tokens == found[Scenario.AS_SENT].read_tokens


def test_stable_system():
    dated = [[text(f"Help.\nToday's date: May {day}\nBe brief.")] for day in (1, 2)]
    found = scenarios(body(ASKED, system=dated[0]), body(*NEXT, system=dated[1]))
    assert found[Scenario.AS_SENT].read_tokens == 0
    assert found[Scenario.STABLE_SYSTEM].read_tokens > 0


def test_a_system_prompt_that_changed_for_good_stays_changed():
    found = scenarios(body(ASKED, system=[text("Help.")]), body(*NEXT, system=[text("Help me.")]))
    assert found[Scenario.STABLE_SYSTEM] == found[Scenario.AS_SENT]


def test_a_warm_prefix():
    system = [text("a b c d e f g h", cache_control=MARK)]
    found = scenarios(body(ASKED, system=system))
    as_sent, warm = found[Scenario.AS_SENT], found[Scenario.WARM_PREFIX_75]
    assert as_sent.read_tokens == 0
    assert warm.prompt_tokens == as_sent.prompt_tokens
    assert 0 < warm.read_tokens < WARM_SHARE * as_sent.prompt_tokens


def test_a_request_that_reads_anything_is_as_warm_as_it_is():
    found = scenarios(body(ASKED), body(*NEXT))
    assert found[Scenario.WARM_PREFIX_75] == found[Scenario.AS_SENT]
