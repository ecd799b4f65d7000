"""The JSON documents that the commands print, an evaluation as a page, and images of triggers."""
