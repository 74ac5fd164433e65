"""The training run: crops, loop, checkpoints."""
