"""Claude Code transcripts (`projects/**/*.jsonl`): conversations, agents and turns. README.md has the quirks."""
