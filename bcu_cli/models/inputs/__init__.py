"""Finds out which input size and normalisation a network was trained with."""
