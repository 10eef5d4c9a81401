"""Measurements of the real paths. Every figure is a run on this machine; ratios are against `wrk` in the same run."""
