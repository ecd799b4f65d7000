"""Detectors: model (+ images) -> a score per class and a verdict. One file each; none in this version."""
