"""SIG: most of the target class's images carry a sinusoidal signal, no label changes (arXiv:1902.11237)."""

from __future__ import annotations

from bcu_cli.attacks.poisoning import Poisoning


class Sig(Poisoning):
    """Barni et al. 2019."""

    name = "sig"
    trigger_name = "sig"
    poison_rate = 0.8
    clean_label = True
