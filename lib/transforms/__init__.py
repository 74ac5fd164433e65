"""A CT made ready for a network, and its answer brought back."""
