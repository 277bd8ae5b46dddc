"""A seeded generator of landing folders: requests and transcripts of invented users, with known answers.

It imitates the record shapes of the real client and proxy; every word in it is invented. Its API bills by
the documented prompt-cache rules with a token estimate of its own, so cache figures test structure, not the
vendor's tokenizer. See the README beside this file for what the example holds.
"""

from kv_pipeline.demo.landing import write_landing
from kv_pipeline.demo.size import BENCHMARK, EXAMPLE, DemoSize, fleet
from kv_pipeline.demo.truth import AgentTruth, ConversationTruth, DemoTruth

__all__ = [
    "BENCHMARK",
    "EXAMPLE",
    "AgentTruth",
    "ConversationTruth",
    "DemoSize",
    "DemoTruth",
    "fleet",
    "write_landing",
]
