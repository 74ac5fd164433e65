"""Evaluation of contours against references: metrics, tables, charts, report; cost of editing a prediction."""
