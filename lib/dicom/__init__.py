"""DICOM: reading a CT series, and writing one."""
