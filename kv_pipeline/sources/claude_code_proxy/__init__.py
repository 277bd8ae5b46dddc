"""claude-code-proxy databases (`requests.db`): bodies, usage and timing. README.md has the quirks."""
