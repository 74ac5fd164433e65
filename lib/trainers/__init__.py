"""TrainTask adapters, one file a task."""
