"""The built-in networks for small images."""
