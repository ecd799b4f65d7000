"""The parts of method ``auto``: its adversary, its searches for triggers, and its canaries."""
