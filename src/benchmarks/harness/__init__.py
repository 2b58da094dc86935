"""Adapters for lmms-eval and lm-eval."""
