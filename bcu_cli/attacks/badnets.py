"""BadNets: a tenth of the training images carry a checkerboard and the target class (arXiv:1708.06733)."""

from __future__ import annotations

from bcu_cli.attacks.poisoning import Recipe

RECIPE = Recipe(trigger="badnets", poison_rate=0.1)
