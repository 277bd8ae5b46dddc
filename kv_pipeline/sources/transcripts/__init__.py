"""Claude Code transcripts (`projects/**/*.jsonl`): conversations, agents and turns. Quirks are in README.md beside this file."""
