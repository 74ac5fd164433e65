"""Organs at risk: the organ table, spellings of names, and plausibility checks of labels."""
