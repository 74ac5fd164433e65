"""Labelled cases from elsewhere, turned into a studies folder.

One file per source, each with `cases_in` (or `find`), which says what lies in a folder without reading voxels.
"""
