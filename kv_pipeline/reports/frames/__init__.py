"""Queries on the store: the frames that figures, pages, texts and the monitor show."""
