"""Our schema and AIPerf's own loader models, on the same documents. Runs where aiperf 0.13.0 is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path

import pytest

from kv_pipeline.cli.export import ExportInput
from kv_pipeline.export.exporter import export_conversations
from kv_pipeline.export.options import ExportOptions, Format, Profile
from kv_pipeline.inspection.consumers import Consumer
from kv_pipeline.inspection.problems import schema_problems
from kv_pipeline.inspection.trace_rules import trace_problems
from kv_pipeline.runner import Inputs, bring_up_to_date
from kv_pipeline.sources.trace_json.options import NestedTimes
from kv_pipeline.store import Store
from kv_pipeline_tests.inspection.documents import SPOILED, spoiled, trace

VERSION = "0.13.0"
EXAMPLE = Path("data/example").resolve()

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("aiperf") is None or importlib.metadata.version("aiperf") != VERSION,
        reason=f"an independent check: pip install aiperf=={VERSION}",
    ),
    pytest.mark.filterwarnings("default"),  # of its own dependencies
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    root = tmp_path_factory.mktemp("example") / "store"
    bring_up_to_date(Store.open(root), Inputs(EXAMPLE))

    def export(**options):
        out = tmp_path_factory.mktemp("out")
        wanted = ExportOptions(**options)
        source = ExportInput(root, None, NestedTimes.AUTO, None)
        return export_conversations(source.conversations(out, wanted), out, wanted).files

    return export


def accepts(model, document):
    try:
        model.model_validate(document)
    except ValueError:
        return False
    return True


def test_our_strict_traces(exported):
    from aiperf.dataset.loader.weka_trace_models import WekaTrace

    for path in exported(profile=Profile.STRICT):
        assert accepts(WekaTrace, json.loads(path.read_bytes()))


def test_our_mooncake_and_bailian_rows(exported):
    from aiperf.dataset.loader.models import BailianTrace, MooncakeTrace

    for kind, model in ((Format.MOONCAKE, MooncakeTrace), (Format.BAILIAN, BailianTrace)):
        rows = [json.loads(line) for path in exported(format=kind) for line in path.read_text().splitlines()]
        assert rows
        assert all(accepts(model, row) for row in rows)


@pytest.mark.parametrize("place", SPOILED.values(), ids=SPOILED)
def test_the_schema_refuses_what_its_models_refuse(place):
    from aiperf.dataset.loader.weka_trace_models import WekaTrace

    document = spoiled(*place)
    assert accepts(WekaTrace, trace())
    # Pydantic reads "64" as 64; the schema keeps to JSON's types, as our files do.
    is_lenient = isinstance(place[1], str) and place[1].isdigit()
    assert (not schema_problems("trace-aiperf", document)) == (accepts(WekaTrace, document) and not is_lenient)
    assert accepts(WekaTrace, document) or trace_problems(Consumer.AIPERF, document)
