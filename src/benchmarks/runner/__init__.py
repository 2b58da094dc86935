"""Asking benchmarks: the one loop, resumable runs, results and their tables."""
