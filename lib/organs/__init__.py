"""organs."""
