"""Submitted labels: validation, version history, working copies, folder watcher, quarantine."""
