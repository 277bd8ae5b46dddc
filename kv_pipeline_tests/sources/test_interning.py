from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_pipeline.core.hashing import SEGMENT_ID_BYTES
from kv_pipeline.core.normalise import Marker, SegmentKind
from kv_pipeline.sources import interning
from kv_pipeline.sources.interning import Interned, InternedMessages, Row, SegmentInterner
from kv_pipeline_tests.sources.factories import SALT

MESSAGE = SegmentKind.MESSAGE


def make_interner() -> tuple[SegmentInterner, list[list[Row]]]:
    batches: list[list[Row]] = []
    return SegmentInterner(SALT, False, batches.append), batches


def raw(text: str, **more: object) -> bytes:
    return json.dumps({"role": "user", "content": text} | more).encode()


def test_equal_content_has_one_number_whatever_its_spacing_and_markers():
    interner, batches = make_interner()
    numbers = [
        interner.intern(MESSAGE, content).segment_index
        for content in (raw("a"), raw("b"), b'{ "role":"user","content":"a" }', raw("a", cache_control={"ttl": "1h"}))
    ]
    assert numbers == [0, 1, 0, 0]
    interner.flush()
    assert [row[0] for row in batches[0]] == [0, 1]


def test_the_same_text_of_another_kind_is_another_segment():
    interner, _ = make_interner()
    assert [interner.intern(kind, b"[]").segment_index for kind in SegmentKind] == [0, 1, 2]


def test_markers_belong_to_the_occurrence():
    interner, _ = make_interner()
    block = {"type": "text", "text": "a"}
    plain, marked = (raw("", content=[block | more]) for more in ({}, {"cache_control": {}}))
    assert interner.intern(MESSAGE, plain).markers == ()
    assert [marker.block_index for marker in interner.intern(MESSAGE, marked).markers] == [0]
    assert interner.intern(MESSAGE, plain).segment_index == interner.intern(MESSAGE, marked).segment_index


def test_numbers_do_not_depend_on_what_the_cache_still_holds(monkeypatch):
    contents = [raw(str(n % 7)) for n in range(60)]
    expected = [make_interner()[0].intern(MESSAGE, content) for content in contents[:1]]
    roomy, _ = make_interner()
    large = [roomy.intern(MESSAGE, content) for content in contents]
    monkeypatch.setattr(interning, "CACHE_BYTES", 50)
    tight, _ = make_interner()
    assert [tight.intern(MESSAGE, content) for content in contents] == large
    assert large[:1] == expected


def test_segments_are_handed_on_in_batches_each_once(monkeypatch):
    monkeypatch.setattr(interning, "FLUSH_CHARACTERS", 100)
    interner, batches = make_interner()
    for n in range(20):
        interner.intern(MESSAGE, raw("x" * 30 + str(n)))
    interner.flush()
    interner.flush()
    assert len(batches) > 1
    assert [row[0] for batch in batches for row in batch] == list(range(20))


def test_ids_are_those_of_content_not_of_numbers():
    (one, _), (two, _) = make_interner(), make_interner()
    two.intern(MESSAGE, raw("first"))
    first, second = (interner.intern(MESSAGE, raw("a")) for interner in (one, two))
    assert first.segment_id == second.segment_id == one.ids([0]) == two.ids([1])
    assert first.segment_index != second.segment_index


MARKERS = st.lists(st.builds(Marker, st.integers(0, 3), st.sampled_from(["5m", "1h"])), max_size=2).map(tuple)
INTERNED = st.builds(
    lambda number, markers: Interned(number, bytes([number]) * SEGMENT_ID_BYTES, markers, None),
    st.integers(0, 9),
    MARKERS,
)


@given(st.lists(st.tuples(st.integers(0, 12), st.lists(INTERNED, max_size=6)), max_size=5))
def test_messages_carried_along_are_those_put_together_anew(turns):
    carried, plain = InternedMessages(), []
    for n_kept, added in turns:
        carried, plain = carried.first(n_kept).followed_by(added), plain[:n_kept] + added
        assert carried.indexes == [message.segment_index for message in plain]
        assert carried.ids == b"".join(message.segment_id for message in plain)
        assert list(carried.marked) == [(n, message.markers) for n, message in enumerate(plain) if message.markers]


def test_the_billing_headers_changing_values_have_an_id_even_when_malformed():
    interner, _ = make_interner()
    values = ["1", "2", "\ud800"]
    headers = [json.dumps(f"x-anthropic-billing-header: cch={value};").encode() for value in values]
    found = [interner.intern(SegmentKind.SYSTEM, header) for header in headers]
    assert {one.segment_index for one in found} == {0}
    assert len({one.billing_header_id for one in found} - {None}) == 3


@pytest.mark.parametrize(
    ("content", "error"), [(b"{", ValueError), (b"\xff", ValueError), (b"[" * 99_999, RecursionError)]
)
def test_what_is_not_json_is_refused_and_leaves_no_number_behind(content, error):
    interner, _ = make_interner()
    with pytest.raises(error):
        interner.intern(MESSAGE, content)
    assert interner.intern(MESSAGE, raw("a")).segment_index == 0
