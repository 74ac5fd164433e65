"""Atomic files, locks between processes, and the workflow database with its migrations."""
