"""Benchmarks: plans in TOML, their cells, the files of results, and tables."""
