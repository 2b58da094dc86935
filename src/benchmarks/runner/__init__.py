"""Running benchmarks: what one is, resumable runs, results."""
