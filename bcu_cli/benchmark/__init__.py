"""Benchmarks: a plan in TOML, the cells that it comes to, their files, and the table made of these."""
