"""Building blocks of reports: figure style, contours over the CT, HTML and Markdown pages, CSV tables."""
