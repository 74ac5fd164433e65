"""DICOM objects: writing a CT series, writing and reading organs as SEG and RTSTRUCT, STOW-RS responses."""
