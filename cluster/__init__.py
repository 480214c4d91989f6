"""Where runs run: Ray clusters and machines; nothing here knows a model."""
