"""Choosing settings by scores."""
