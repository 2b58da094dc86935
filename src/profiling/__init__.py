"""Short runs that measure a model and write its calibration file, and the choice of settings.

Each floor imports only those before it: `pace`; `job` and `data` (what a model is shown); `probes` (one file a profile);
`profiles` (which there are); then `calibrate`, `tuning` (scores by the benchmarks) and `showing` side by side.
"""
