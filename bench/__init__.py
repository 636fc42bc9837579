"""Benchmarks: each measures two sides in one run on the same machine, and only their ratio is worth quoting."""
