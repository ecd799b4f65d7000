"""SIG: most images of the target class carry a sinusoidal pattern; no label changes (arXiv:1902.11237)."""

from __future__ import annotations

from bcu_cli.attacks.poisoning import Poisoning


class Sig(Poisoning):
    """The SIG attack (Barni et al. 2019)."""

    name = "sig"
    trigger_name = "sig"
    poison_rate = 0.8
    clean_label = True
