"""Trace JSON (kv-cache-tester's format): published traces and our own exports. README.md has the quirks."""
