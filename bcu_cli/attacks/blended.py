"""Blended: a tenth of the training images carry a faint pattern and the target class (arXiv:1712.05526)."""

from __future__ import annotations

from bcu_cli.attacks.poisoning import Poisoning


class Blended(Poisoning):
    """The Blended attack (Chen et al. 2017)."""

    name = "blended"
    trigger_name = "blended"
