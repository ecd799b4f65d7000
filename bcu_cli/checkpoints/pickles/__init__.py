"""Pickles: inspecting them, reading them without running anything, and finding the weights in them."""
