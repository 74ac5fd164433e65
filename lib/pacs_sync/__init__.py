"""Exchange of labels and scans with a PACS in the background."""
