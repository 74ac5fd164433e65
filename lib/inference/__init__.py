"""Inference: preprocessing, one or several passes of networks over a CT, and uncertainty."""
