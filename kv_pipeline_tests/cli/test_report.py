"""report and monitor from the command line: exit codes, what is printed, what is written."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from kv_pipeline.cli.monitor import limit_of, period_of
from kv_pipeline.errors import UsageError
from kv_pipeline.reports.monitor import Period

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_report_says_where_its_pages_are(command, example_store, tmp_path):
    done = command("report", "--store", example_store, "--out", tmp_path / "r")
    assert (done.code, done.err) == (0, "")
    assert str(tmp_path / "r" / "index.html") in done.out
    assert "9 pages" in done.out
    assert len(list((tmp_path / "r" / "conversations").rglob("*.html"))) == 8


def test_report_for_machines_with_pictures(command, example_store, tmp_path):
    done = command(
        "report", "--store", example_store, "--out", tmp_path, "--json", "--png", "--conversation-id", "858af957"
    )
    assert set(done.json) == {"index", "pages", "pictures", "n_requests"}
    assert (len(done.json["pages"]), done.json["n_requests"]) == (1, 15)
    assert done.json["pictures"]


def test_report_as_text(command, example_store):
    done = command("report", "--store", example_store, "--text")
    assert (done.code, done.err) == (0, "")
    for heading in ("Totals", "Models", "Context", "Time between", "Lifetimes", "Causes of loss"):
        assert heading in done.out


def test_prices_of_the_users_file_count(command, example_store, tmp_path):
    free = tmp_path / "free.toml"
    prices = "".join(f"{name}_usd_per_mtok = 0\n" for name in ("input", "write_5m", "write_1h", "read", "output"))
    models = ("claude-opus-5-5", "claude-sonnet-4-5", "claude-haiku-4-5", "claude-opus-4-1", "claude-sonnet-5-5")
    free.write_text("".join(f'[[prices]]\nmodel = "{model}"\n{prices}' for model in models))
    usual = command("monitor", "--store", example_store, "--json").json["overview"]
    changed = command("monitor", "--store", example_store, "--json", "--prices", free).json["overview"]
    assert usual["original_cost_usd"] > changed["original_cost_usd"] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["report"], "--out"),
        (["report", "--text", "--json"], "exclude"),
        (["report", "--out", "x", "--conversation-id", "nobody"], "no conversation 'nobody'"),
        (["report", "--out", "x", "--kv-model", "nothing"], "nothing"),
        (["report", "--out", "x", "--prices", "missing.toml"], "missing.toml"),
        (["monitor", "--since", "yesterday"], "--since is 'yesterday'"),
        (["monitor", "--since", "2026-01-02", "--days", "3"], "exclude"),
        (["monitor", "--since", "2026-01-02", "--until", "2026-01-01"], "empty"),
        (["monitor", "--user", "nobody"], "nobody"),
        (["monitor", "--fail-under", "101"], "--fail-under"),
        (["monitor", "--prices", "missing.toml"], "missing.toml"),
    ],
    ids=" ".join,
)
def test_usage_errors(command, example_store, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    done = command(*arguments, "--store", example_store)
    assert done.code == 2
    assert expected in done.err
    assert list(tmp_path.iterdir()) == []


def test_usage_errors_come_before_a_missing_store_is_made(command, tmp_path):
    for arguments in (["report", "--out", tmp_path / "r"], ["monitor"]):
        done = command(*arguments, "--store", tmp_path / "nowhere")
        assert done.code == 2
        assert "There is no store" in done.err
    assert list(tmp_path.iterdir()) == []


def test_monitor_for_people(command, example_store):
    done = command("monitor", "--store", example_store)
    assert (done.code, done.err) == (0, "")
    for word in ("events", "hits", "misses", "hit rate", "tokens saved", "average per hit", "original cost",
                 "cached cost", "savings", "Breakpoints", "█", "Recommendations"):  # fmt: skip
        assert word in done.out


def test_monitor_exports_what_it_prints(command, example_store, tmp_path):
    path = tmp_path / "deep" / "m.json"
    done = command("monitor", "--store", example_store, "--json", "--export", path)
    assert done.code == 0
    assert json.loads(path.read_text()) == done.json


@pytest.mark.parametrize(("limit", "code"), [("0", 0), ("0.01", 0), ("1", 1), ("100", 1), ("99.9", 1)])
def test_fail_under(command, example_store, limit, code):
    done = command("monitor", "--store", example_store, "--fail-under", limit)
    assert done.code == code
    assert ("is under" in done.err) == bool(code)


def test_fail_under_says_that_there_was_nothing(command, example_store):
    done = command("monitor", "--store", example_store, "--since", "2100-01-01", "--fail-under", "50")
    assert done.code == 1
    assert "hit rate 0.00% is under 50.00%; there are no events in this period." in done.err


def test_limits_are_shares_or_percentages():
    assert [limit_of(rate) for rate in (None, 0, 0.8, 1, 80, 100)] == [None, 0, 0.8, 1, 0.8, 1]
    for rate in (-0.1, 100.1):
        with pytest.raises(UsageError, match="not a rate"):
            limit_of(rate)


@pytest.mark.parametrize(
    ("arguments", "since", "until"),
    [
        ((None, None, None), None, None),
        ((2, None, None), NOW - timedelta(days=2), None),
        ((2, None, "2026-11-10"), datetime(2026, 11, 9, tzinfo=UTC), datetime(2026, 11, 11, tzinfo=UTC)),
        ((None, "2026-11-10", "2026-11-10"), datetime(2026, 11, 10, tzinfo=UTC), datetime(2026, 11, 11, tzinfo=UTC)),
        ((None, "2026-11-10T08:00", None), datetime(2026, 11, 10, 8, tzinfo=UTC), None),
        ((None, "2026-11-10T08:00+02:00", None), datetime(2026, 11, 10, 6, tzinfo=UTC), None),
    ],
)
def test_periods(arguments, since, until):
    assert period_of(*arguments, NOW) == Period(since, until)
