"""Blended: a tenth of the training images carry a faint pattern and the target class (arXiv:1712.05526)."""

from __future__ import annotations

from bcu_cli.attacks.poisoning import Recipe

RECIPE = Recipe(trigger="blended", poison_rate=0.1)
