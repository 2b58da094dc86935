"""What profiling shows a model."""
