"""Decoding of images to arrays, in processes of its own."""
