"""Measures of classifiers on images: accuracy, attack success, robust accuracy, agreement; with intervals."""
