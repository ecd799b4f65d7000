"""BadNets: a tenth of the training images carry a checkerboard and the target class (arXiv:1708.06733)."""

from __future__ import annotations

from bcu_cli.attacks.poisoning import Poisoning


class BadNets(Poisoning):
    """The BadNets attack: all-to-one, or all-to-all where the target is ``next``."""

    name = "badnets"
    trigger_name = "badnets"
