"""MONAI Label's stores of scans and labels: a studies folder, or a PACS."""
