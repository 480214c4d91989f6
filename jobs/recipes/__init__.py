"""Named experiments, one file an application."""
