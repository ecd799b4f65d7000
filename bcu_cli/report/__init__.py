"""The JSON documents that the commands print, an evaluation as a page, and pictures of triggers."""
