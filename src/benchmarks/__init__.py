"""Measuring hallucination and speed.

Each floor imports only those before it: `benchmark` (what a benchmark is), `public` (each in a file), `runner` (asking and
scoring), then `harness`, `report` and `speed` side by side, and `demo`.
"""
