"""conversation_index over time: transcripts that vanish leave what they said."""

from kv_pipeline.schemas.blocks import TRACES
from kv_pipeline.schemas.conversations import AGENTS, CONVERSATION_REQUESTS
from kv_pipeline_tests.factories import bring_up_to_date, growing_turns, open_store, write_database, write_transcript


def two_conversations(tmp_path, monkeypatch):
    inbox, store = tmp_path / "inbox", open_store(tmp_path / "store", monkeypatch)
    write_database(inbox / "ada" / "r.db", growing_turns("a", 2) + growing_turns("b", 2))
    first = write_transcript(inbox / "ada", "s", [("a-0", 0), ("a-1", 60)])
    write_transcript(inbox / "ada", "t", [("b-0", 0), ("b-1", 60)])
    bring_up_to_date(store, inbox)
    return inbox, store, first


def index_tables(store):
    return [store.read(model, ["ada"]).rows() for model in (CONVERSATION_REQUESTS, AGENTS)]


def test_vanished_transcript_leaves_its_conversation(tmp_path, monkeypatch):
    inbox, store, transcript = two_conversations(tmp_path, monkeypatch)
    before = index_tables(store)
    transcript.unlink()
    assert bring_up_to_date(store, inbox)["conversations"] == []
    assert index_tables(store) == before
    assert store.partitions(TRACES.name) == ["ada/s", "ada/t"]


def test_transcript_that_is_there_counts_as_it_is(tmp_path, monkeypatch):
    inbox, store, transcript = two_conversations(tmp_path, monkeypatch)
    write_transcript(inbox / "ada", "s", [("a-0", 0)])
    assert transcript.exists()
    assert bring_up_to_date(store, inbox)["conversations"] == ["ada/s"]
    assert store.read(TRACES, ["ada/s"]).height == 1
