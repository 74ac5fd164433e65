"""Correction of an organ's contour by clicks and scribbles (ADR 32)."""
