"""claude-code-proxy databases (`requests.db`): bodies, usage and timing. The quirks are in README.md beside this file."""
