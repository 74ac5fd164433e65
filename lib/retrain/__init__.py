"""Retraining by itself: when (pure), on what, by whom, and which model may serve."""
