"""Comparisons of networks, and of active-learning strategies: runs, paired statistics, reports."""
