"""Recipes: organ set, network, loss, schedule and augmentation of a model."""
