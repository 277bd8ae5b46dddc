from __future__ import annotations

from kv_pipeline.demo.engine import Join, Script, run


def steps(log: list[tuple[int, str]], name: str, times: list[int]) -> Script:
    for at_ms in times:
        yield at_ms
        log.append((at_ms, name))
    return name


def test_concurrent_scripts_run_in_time_order():
    log: list[tuple[int, str]] = []
    run([(0, steps(log, "a", [10, 40])), (5, steps(log, "b", [20, 30]))])
    assert log == [(10, "a"), (20, "b"), (30, "b"), (40, "a")]


def test_equal_times_keep_the_order_of_scheduling():
    log: list[tuple[int, str]] = []
    run([(0, steps(log, "a", [10])), (0, steps(log, "b", [10]))])
    assert log == [(10, "a"), (10, "b")]


def test_join_waits_for_all_and_hands_back_results_in_order():
    log: list[tuple[int, str]] = []
    results: list[str] = []

    def parent() -> Script:
        results.extend((yield Join(((0, steps(log, "slow", [50])), (0, steps(log, "quick", [10]))))))
        log.append((99, "parent"))

    run([(0, parent())])
    assert results == ["slow", "quick"]
    assert log == [(10, "quick"), (50, "slow"), (99, "parent")]
