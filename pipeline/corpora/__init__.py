"""Where samples come from: one file a corpus format."""
