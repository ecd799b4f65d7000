"""The JSON documents that the commands print."""
