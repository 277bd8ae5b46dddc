"""HTML pages: a shell, its style and its script, shipped as package data."""
