"""Query strategies: pure functions that choose the next image from a pool."""
