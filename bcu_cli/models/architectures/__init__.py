"""Finds out which architecture a file's tensors belong to, with the index of known architectures."""
