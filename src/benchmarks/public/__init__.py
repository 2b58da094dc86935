"""The public benchmarks, one file each, and the scenes of the testbed."""
