"""Background work: worker processes, their supervision and their priority."""
