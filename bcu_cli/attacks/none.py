"""No attack: a clean network trained like the backdoored ones, to compare them with."""

from __future__ import annotations

from bcu_cli.attacks.poisoning import Poisoning


class Clean(Poisoning):
    """Triggers nothing."""

    name = "none"
    trigger_name = None
    poison_rate = 0.0
