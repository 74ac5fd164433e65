"""Backends: the ways in which a network can be computed on a machine (ADR 30)."""
