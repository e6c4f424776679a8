"""A committed run against the truth: average precision, panoptic quality, counts, seams, calibration, and a page."""
