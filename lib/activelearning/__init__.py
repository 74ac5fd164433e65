"""Active learning: scores of images, and the choice of the next case to contour."""
