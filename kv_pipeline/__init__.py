"""kv_pipeline: KV-cache traces, simulation and attribution from Claude Code traffic."""
