"""The JSON documents that the commands print, an evaluation as a page, and pictures of triggers."""

SCHEMA_VERSION = 1
"""Version of the JSON documents; it changes where a field changes its meaning."""
