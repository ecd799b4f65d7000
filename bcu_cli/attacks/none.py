"""No attack: a clean network, trained like the backdoored ones for comparison."""

from __future__ import annotations

from bcu_cli.attacks.poisoning import Poisoning


class Clean(Poisoning):
    """The training of a clean network, which triggers no image."""

    name = "none"
    trigger_name = None
    poison_rate = 0.0
