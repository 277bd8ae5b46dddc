from __future__ import annotations

import json
import re
from datetime import date
from pathlib import Path

import pytest

from kv_pipeline.errors import UsageError
from kv_pipeline.prices.files import SUPPLEMENT, file_prices
from kv_pipeline.prices.loading import load_prices

ROW = {
    "model": "us.anthropic.claude-opus-4-5-20251101-v1:0",
    "input_usd_per_mtok": 4,
    "write_5m_usd_per_mtok": 5.5,
    "write_1h_usd_per_mtok": 8,
    "read_usd_per_mtok": 0.4,
    "output_usd_per_mtok": 20,
}


def toml_of(row):
    return "[[prices]]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in row.items()) + "\n"


def written(tmp_path, text, name="ours.toml"):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["ours.toml", "ours.json"])
def test_a_file_overrides_a_model_and_leaves_the_others(tmp_path, name):
    text = toml_of(ROW) if name.endswith("toml") else json.dumps({"prices": [ROW]})
    table = load_prices(written(tmp_path, text, name))
    found = table.for_model("claude-opus-4-5")
    assert found is not None
    assert (found.input_usd_per_mtok, found.read_usd_per_mtok, found.source) == (4, 0.4, name)
    assert table.models == load_prices().models
    assert table.for_model("claude-haiku-4-5") == load_prices().for_model("claude-haiku-4-5")


def test_all_keys(tmp_path):
    later = toml_of(ROW) + 'valid_from = "2026-05-01"\nabove_prompt_tokens = 200000\ncontext_window_tokens = 1000000\n'
    head = 'source = "contract"\ndate = 2026-04-01\n'
    table = file_prices(written(tmp_path, head + toml_of(ROW) + toml_of(ROW) + "valid_from = 2026-05-01\n" + later))
    found = table.for_model("claude-opus-4-5", date(2026, 5, 1), 200_001)
    assert found is not None
    assert (found.source, found.source_date) == ("contract", date(2026, 4, 1))
    assert (found.valid_from, found.above_prompt_tokens) == (date(2026, 5, 1), 200_000)
    assert found.context_window_tokens == 1_000_000


BROKEN = {
    "no number": (
        toml_of(ROW | {"read_usd_per_mtok": "cheap"}),
        r"Expected `float`.*\$\.prices\[0\]\.read_usd_per_mtok",
    ),
    "negative": (toml_of(ROW | {"input_usd_per_mtok": -1}), r">= 0.*\$\.prices\[0\]\.input_usd_per_mtok"),
    "not a number": (toml_of(ROW).replace("= 20", "= nan"), r"\$\.prices\[0\]\.output_usd_per_mtok"),
    "infinite": (toml_of(ROW).replace("= 20", "= inf"), r"\$\.prices\[0\]\.output_usd_per_mtok"),
    "unknown key": (toml_of(ROW | {"cached": 1}), r"unknown field `cached`.*\$\.prices\[0\]"),
    "key missing": (toml_of({k: v for k, v in ROW.items() if k != "write_1h_usd_per_mtok"}), "write_1h_usd_per_mtok"),
    "nothing": ("", "prices"),
    "empty": ("prices = []", r"length >= 1.*\$\.prices"),
    "no TOML": ("[[prices", "end of an array declaration"),
    "twice": (toml_of(ROW) * 2, "claude-opus-4-5 has two prices"),
    "only long prompts": (toml_of(ROW | {"above_prompt_tokens": 5}), "no price for shorter prompts"),
}


@pytest.mark.parametrize(("text", "found"), BROKEN.values(), ids=BROKEN)
def test_what_is_wrong_is_said(tmp_path, text, found):
    with pytest.raises(UsageError, match=found) as raised:
        file_prices(written(tmp_path, text))
    assert re.search(r"ours\.toml: .*\. docs/prices\.md describes the file\.$", str(raised.value))


def test_no_json(tmp_path):
    with pytest.raises(UsageError, match=r"ours\.json: Input data was truncated"):
        file_prices(written(tmp_path, "{", "ours.json"))


def test_not_text(tmp_path):
    path = tmp_path / "ours.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"ours\.toml: "):
        file_prices(path)


def test_missing_file(tmp_path):
    with pytest.raises(UsageError, match=r"no\.toml can't be read: No such file or directory\. Name an existing file"):
        file_prices(tmp_path / "no.toml")


def test_supplement_says_source_and_date():
    assert {(row.source != SUPPLEMENT.name, row.source_date is not None) for row in file_prices(SUPPLEMENT)} == {
        (True, True)
    }


def test_the_documented_example_is_a_price_file(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "prices.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    assert file_prices(written(tmp_path, example)).for_model("claude-opus-4-5") is not None
