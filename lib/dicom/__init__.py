"""DICOM: a CT series, and the organs on it as SEG and RTSTRUCT; out and in."""
