"""Retraining: from submitted contours to a model that serves, and back."""
