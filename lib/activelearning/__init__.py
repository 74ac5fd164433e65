"""Which patient to contour next."""
