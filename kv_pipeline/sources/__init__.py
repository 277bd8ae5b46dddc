"""Log formats, one folder each: a reader that yields frames and segments, and a README of the format's quirks."""
