"""Telling people and tools that something is wrong: what is said, and how it gets there. Never any content."""
