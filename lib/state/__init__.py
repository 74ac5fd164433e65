"""The workflow's memory: one database, and a small class over it for each concern."""
