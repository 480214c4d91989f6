"""Shards on disk: tars, index, manifest; ingest, plan and stream."""
