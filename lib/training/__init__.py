"""The training run: crops and their augmentation, loop, checkpoints."""
