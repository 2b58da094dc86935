"""Calibration files, one YAML per model (data only)."""
