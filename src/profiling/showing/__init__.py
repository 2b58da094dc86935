"""Calibration files as maps and tables."""
