"""InferTask adapters, one file a task."""
