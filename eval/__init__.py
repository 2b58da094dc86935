"""Suites and results (data only)."""
