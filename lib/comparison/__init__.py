"""Networks against each other: the same data, recipe and budget, the same held-out cases, one table."""
