"""Decoding of images to arrays, in separate processes."""
