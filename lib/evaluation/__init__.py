"""Metrics over many cases: finding and reading them, the table, the charts, the report."""
