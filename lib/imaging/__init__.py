"""Volumes: grids, file formats, CT series, and functions to find, read and write scans and labels."""
