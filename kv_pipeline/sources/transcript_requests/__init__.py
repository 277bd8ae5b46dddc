"""Requests that transcripts record, or that can be put together from their messages. README.md has the quirks."""
