"""claude-trace logs (`log-*.jsonl`): request/response pairs, one a line. README.md has the quirks."""
