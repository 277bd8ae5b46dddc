"""Any traces, in any format, at any block size: written and read back they are the same."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_pipeline.export.exporter import export_conversations
from kv_pipeline.export.options import ExportOptions, Format, HashIdScope, Profile
from kv_pipeline.export.trace_conversations import TraceConversations
from kv_pipeline.inspection.inspector import inspect_file
from kv_pipeline.sources.trace_json.options import NestedTimes
from kv_pipeline_tests.export import truth
from kv_pipeline_tests.inspection.documents import request, subagent, trace

BLOCK_SIZE = 2
SECONDS = st.integers(0, 80).map(lambda quarters: quarters / 4)
PROMPT = st.lists(st.integers(0, 1), min_size=1, max_size=11)


@st.composite
def requests_of(draw, ids, most):
    """Requests by time; ids name all tokens up to a block's end."""
    found = []
    for t in sorted(draw(st.lists(SECONDS, min_size=1, max_size=most))):
        tokens = draw(PROMPT)
        ends = range(BLOCK_SIZE, len(tokens) + 1, BLOCK_SIZE)
        own = [ids.setdefault(tuple(tokens[:end]), len(ids) + 1) for end in ends]
        api_time = draw(st.none() | SECONDS)
        times = {} if api_time is None else {"api_time": api_time}
        made = request(t, model=draw(st.sampled_from("mn")), out=draw(st.integers(0, 9)), hash_ids=own)
        del made["api_time"]
        found.append(made | times | {"in": len(tokens)})
    return found


@st.composite
def entries_of(draw, ids, agents, depth=0):
    """Requests and sub-agents by time, a request first."""
    own = draw(requests_of(ids, 5))
    found = [(entry["t"], 0, entry) for entry in own]
    for _ in range(draw(st.integers(0, 2 if depth < 2 else 0))):
        agents.append(f"agent_{len(agents)}")
        name = agents[-1]
        t = own[0]["t"] + draw(SECONDS)
        below = draw(entries_of(ids, agents, depth + 1))
        start = below[0]["t"]
        below = [entry | {"t": entry["t"] - start} for entry in below]  # a marker stands where its first request does
        status = draw(st.sampled_from(["completed", "async_launched"]))
        found.append((t, 1, subagent(*below, t=t, agent_id=name, status=status)))
    return [entry for _, _, entry in sorted(found, key=lambda item: item[:2])]


@st.composite
def documents(draw):
    scope = draw(st.sampled_from(["local", "global"]))
    shared: dict[tuple[int, ...], int] = {}
    found = []
    for number in range(draw(st.integers(1, 3))):
        ids = shared if scope == "global" else {}
        entries = draw(entries_of(ids, []))
        found.append(trace(*entries, id=f"t{number}", block_size=BLOCK_SIZE, hash_id_scope=scope))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("round_trip")


def exported(folder, made, options):
    (folder / "in").mkdir(exist_ok=True)
    files = [folder / "in" / f"{document['id']}.json" for document in made]
    for path, document in zip(files, made, strict=True):
        path.write_text(json.dumps(document))
    conversations = TraceConversations(files, options, NestedTimes.RELATIVE)
    return files, export_conversations(conversations, folder / "out", options)


@settings(max_examples=60)
@given(documents(), st.sampled_from([Format(name) for name in truth.ASSERTIONS]), st.integers(1, 4))
def test_one_file_formats(folder, made, kind, factor):
    options = ExportOptions(format=kind, block_size=BLOCK_SIZE * factor)
    files, result = exported(folder, made, options)
    truth.ASSERTIONS[kind](result.files[0], truth.of_traces(files), BLOCK_SIZE * factor)
    if result.files[0].stat().st_size:
        assert all(not problems for problems in inspect_file(result.files[0]).problems.values())


@settings(max_examples=40)
@given(documents(), st.sampled_from(list(Profile)))
def test_trace_json(folder, made, profile):
    options = ExportOptions(profile=profile, hash_ids=HashIdScope.LOCAL)
    files, result = exported(folder, made, options)
    before, after = (sorted(truth.of_traces(paths), key=_place) for paths in (files, result.files))
    kept = [(r.trace, r.agent, r.model, r.n_in, r.n_out, list(r.prefixes)) for r in before]
    assert [(r.trace, r.agent, r.model, r.n_in, r.n_out, list(r.prefixes)) for r in after] == kept
    first_s = {r.trace: min(o.t_s for o in before if o.trace == r.trace) for r in before}
    assert [r.t_s for r in after] == pytest.approx([r.t_s - first_s[r.trace] for r in before], abs=1e-6)
    if profile is Profile.UPSTREAM:
        assert [(r.parent, r.status) for r in after] == [(r.parent, r.status) for r in before]
    for name in first_s:
        truth.assert_same_blocks(
            [[number for _, number in r.prefixes.values()] for r in after if r.trace == name],
            [list(r.prefixes.values()) for r in before if r.trace == name],
        )


def _place(found):
    return found.trace, found.agent, found.t_s
