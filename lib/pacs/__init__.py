"""A PACS behind DICOMweb: client, series catalog, local cache, and an Orthanc of our own."""
