"""Figures draw their frames: the values of the specification are the frame's, and the chart uses its columns."""

from __future__ import annotations

import json
import re
import struct

import polars as pl
import pytest

from kv_pipeline.core.conversation_blocks import conversation_reuse
from kv_pipeline.reports import conversation_page, fleet_page, pictures
from kv_pipeline.reports.figures import requests as figures
from kv_pipeline.reports.figures import timeline
from kv_pipeline.reports.figures.figure import rows, specification
from kv_pipeline.reports.figures.timeline import STATES
from kv_pipeline.reports.frames import timeline as frames_of_timeline
from kv_pipeline.reports.frames.curves import fleet_curve_frames, stored
from kv_pipeline.reports.frames.money import causes, what_if
from kv_pipeline.reports.frames.requests import all_conversations
from kv_pipeline.reports.page.library import compiled
from kv_pipeline.reports.pictures import drawn, png, summary_markdown
from kv_pipeline.schemas.blocks import TRACES, VALIDATION_SUMMARY
from kv_pipeline.schemas.conversations import CONVERSATIONS
from kv_pipeline.schemas.explanations import WHAT_IF
from kv_pipeline.steps.fleet import FLEET
from kv_pipeline_tests.reports.factories import request, requests

FIGURES = sorted({*conversation_page.FIGURES, *fleet_page.FIGURES}, key=lambda figure: figure.name)
LINK = {"first_request", "last_request", "shown_agent"}


@pytest.fixture(scope="module")
def frames(example, prices):
    """Frames of every figure: those of a conversation with losses, and those of the fleet."""
    keys = example.partitions(TRACES.name)
    conversations = list(all_conversations(example, keys, prices))
    everything = pl.concat(each.requests for each in conversations)
    blocks = [stored(each.blocks, example.settings.block_size) for each in conversations]
    largest = max(conversations, key=lambda each: each.requests["lost_tokens"].sum())
    reuse = conversation_reuse(stored(largest.blocks, example.settings.block_size))
    users = example.partitions(CONVERSATIONS.name)
    first = example.read(CONVERSATIONS, users).select("conversation_id", "user_id", "first_request_at_utc")
    return {
        **conversation_page.conversation_frames(largest, reuse, 1000.0),
        **fleet_page.fleet_frames(everything, example.read(VALIDATION_SUMMARY, [FLEET]), first),
        **fleet_curve_frames(blocks, "5m", 1000.0),
        "causes": causes(everything),
        "what_if": what_if(example.read(WHAT_IF, users), everything, prices),
    }


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_values_in_the_specification_are_the_frames(figure, frames):
    assert figure.has_data(frames)
    spec = drawn(figure, frames)
    values = {source["name"]: source["values"] for source in spec["data"] if source["name"] in frames}
    assert set(values) == set(figure.frames)
    for name in figure.frames:
        assert len(values[name]) == frames[name].height
        assert values[name] == rows(frames[name])
    json.dumps(spec, allow_nan=False)


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_fields_of_the_chart_are_columns_of_its_frames_or_made_from_them(figure, frames):
    spec = specification(figure)
    made = set(re.findall(r'"as": "(\w+)"', json.dumps(spec)))
    made |= {
        name for names in re.findall(r'"as": \[([^\]]*)\]', json.dumps(spec)) for name in re.findall(r"\w+", names)
    }
    inline = {key for layer in spec.get("layer", []) for row in layer.get("data", {}).get("values", []) for key in row}
    of_labels = {"value"}  # labels of axes are written by expressions over their own values
    known = {column for name in figure.frames for column in frames[name].columns} | made | inline | of_labels
    used = set(re.findall(r'"field": "(\w+)"', json.dumps(spec)))
    used |= set(re.findall(r"datum\.(\w+)", json.dumps(spec)))
    used |= {
        name for names in re.findall(r'"fold": \[([^\]]*)\]', json.dumps(spec)) for name in re.findall(r"\w+", names)
    }
    assert used
    assert used - known == set()


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_a_figure_compiles_without_data_and_without_warnings(figure):
    spec = compiled(figure)
    named = {source["name"] for source in spec["data"] if "values" not in source and "source" not in source}
    assert set(figure.frames) <= named
    signals = {signal["name"] for signal in spec["signals"]}
    assert signals >= LINK if figure.is_linked else not LINK & signals
    assert "url" not in json.dumps(spec["data"])


def test_the_picture_is_a_png_of_the_asked_width(frames):
    picture = png(figures.HIT_RATE, frames, 1.0, 300)
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture[16:24])
    assert 300 < width < 450
    assert height > 200


def test_a_picture_changes_with_its_frame(frames):
    other = {**frames, "requests": frames["requests"].with_columns(billed_hit_rate=pl.lit(0.1))}
    assert png(figures.HIT_RATE, frames, 1.0) != png(figures.HIT_RATE, other, 1.0)


def test_linked_pictures_show_all_requests(frames):
    values = {signal["name"]: signal.get("value") for signal in drawn(figures.HIT_RATE, frames)["signals"]}
    assert values["last_request"] == frames["requests"]["request_index"].max()


def test_figures_without_anything_to_show_are_told():
    nothing_lost = {"requests": requests(request(0), request(1))}
    assert not figures.LOSSES.has_data(nothing_lost)
    assert figures.HIT_RATE.has_data(nothing_lost)
    assert not figures.HIT_RATE.has_data({"requests": requests()})
    assert not figures.HIT_RATE.has_data({})


def test_states_of_figure_and_frame_are_the_same():
    assert tuple(STATES) == frames_of_timeline.STATES
    assert timeline.TIMELINE.frames[0] == "rectangles"


def test_rows_have_no_nan_and_times_as_text():
    frame = requests(request(0, lost_usd=float("nan"), cost_usd=float("inf")))
    row = rows(frame)[0]
    assert (row["lost_usd"], row["cost_usd"]) == (None, None)
    assert row["requested_at_utc"] == "2026-03-02 08:00:00"


def test_markdown_of_the_roll_up_is_small_and_holds_pictures_only(example):
    markdown = summary_markdown(example)
    assert markdown.count("](data:image/png;base64,") == 3
    assert len(markdown) < 200_000
    assert re.sub(r"\(data:image/png;base64,[A-Za-z0-9+/=]+\)", "", markdown).replace("![", "").replace("]", "").split(
        "\n\n"
    ) == ["Hit rate by model", "Causes of loss, in tokens", "Simulated against billed, by conversation"]


def test_pictures_that_would_make_metadata_too_large_are_left_out(example, monkeypatch):
    sizes = [len(part) for part in summary_markdown(example).split("\n\n")]
    monkeypatch.setattr(pictures, "MARKDOWN_BYTES", sum(sizes[:2]) + 10)
    assert [len(part) for part in summary_markdown(example).split("\n\n")] == sizes[:2]
