"""Calibration files: what is known of one model."""
