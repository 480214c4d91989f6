"""Commands: parse, one call, print."""
