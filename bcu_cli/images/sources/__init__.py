"""Where images come from: folders, archives, published data sets, and values passed to the Python API."""
