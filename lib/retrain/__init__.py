"""Retraining: from submitted labels to a promoted model."""
