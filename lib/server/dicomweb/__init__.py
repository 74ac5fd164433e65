"""DICOMweb proxy between the viewer and the PACS."""
