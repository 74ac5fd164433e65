"""pacs_sync."""
