"""From an experiment to a trained, scored model."""
