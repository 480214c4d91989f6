"""Targets, head, loss, decoding, score: one file a task."""
