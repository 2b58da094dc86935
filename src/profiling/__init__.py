"""Short runs that measure a model and write its calibration file."""
