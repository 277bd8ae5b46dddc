"""Requests and answers of the Messages API, however a log wraps them: what the sources that record it share."""
