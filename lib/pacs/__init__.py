"""A PACS behind DICOMweb: asking it, keeping its scans at hand, and bringing it labels."""
