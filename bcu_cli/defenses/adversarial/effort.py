"""How much method ``auto`` computes, and by which optimiser: less on large images, where a step costs more.

At 224x224 an image costs what 49 images cost at 32x32, in time and in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bcu_cli.training.options import Optimizer

LARGE_PIXELS = 64 * 64
"""Most pixels of an image for ``USUAL``; what is larger gets ``LARGE``."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """Numbers of steps and images, and how far a cleansing goes from the original.

    Args:
        batch_size: Most images in a step; a cleansing adds as many changed ones, and as many mixed ones.
        learning_rate: Peak learning rate of a cleansing.
        adamw_rate: The same where the optimiser is AdamW.
        optimizer: Optimiser of a cleansing.
        proven: Whether a result of these settings may be called cleansed.
        reinitialise: Whether levels above the gentle one begin with a share of the weights re-initialised. If
            not, level 1 is left out, and no canaries choose a level.
        epochs: Passes over the images in a cleansing, which takes no fewer than ``fewest_steps``.
        fewest_steps: Fewest steps of a cleansing.
        canary_steps: Steps that plant canaries.
        search_steps: Steps of a search on the original.
        verification_steps: Steps of the search on the cleansed network.
        spectral_steps: Steps of the search for a sinusoidal trigger; 0 leaves it out.
        sinusoid_images: Most images that each sinusoidal pattern is tried on.
        mixing_images: Most images that mixes are compared on.
        error_factor: Factor of the weight of images on which student and teacher err or disagree.
        all_errors: Whether changed images that mislead the student alone count, too.
        mixed_images: Whether the student learns the original's answers to mixes of two images, too.
        least_share: Least share of the cleansed network in a mix, before the margin is added; 1 is no mix.
        selection_images: Images that changes found on the cleansed network are selected on.
        patch_interval: One in this many of the listed patches is tried. It has no divisor in common with the
            10 patches of each size at each place; otherwise some of them would be left out everywhere.
    """

    batch_size: int = 128
    learning_rate: float = 0.05
    adamw_rate: float = 0.001
    optimizer: Optimizer = "sgd"
    proven: bool = True
    reinitialise: bool = True
    epochs: int = 20
    fewest_steps: int = 400
    canary_steps: int = 200
    search_steps: int = 120
    verification_steps: int = 160
    spectral_steps: int = 200
    sinusoid_images: int = 200
    mixing_images: int = 1000
    error_factor: float = 1.0
    all_errors: bool = False
    mixed_images: bool = True
    least_share: float = 0.2
    selection_images: int = 96
    patch_interval: int = 1


USUAL = Effort()
LARGE = Effort(
    batch_size=12,
    learning_rate=0.01,
    adamw_rate=0.0003,
    reinitialise=False,
    epochs=3,
    fewest_steps=100,
    search_steps=300,
    verification_steps=150,
    spectral_steps=0,
    sinusoid_images=60,
    mixing_images=200,
    error_factor=0.5,
    all_errors=True,
    mixed_images=False,
    least_share=0.6,
    selection_images=32,
    patch_interval=3,
)
"""For images of more than ``LARGE_PIXELS``, by the time and the memory that they take on one network.

Weights are not re-initialised: so few steps do not bring back what that destroys. Nor do they bring back what
a higher weight of errors costs; and mixed images gave nothing there (``docs/auto-log.md``).
"""


PLAIN_RATE = 0.01
"""Most learning rate of SGD for a network whose activations nothing normalises."""


def suited(input_size: Sequence[int], *, normalised_by: Literal["batch", "layer", "nothing"]) -> Effort:
    """The effort for a network.

    ViTs and ConvNeXts are trained by AdamW. SGD at a rate that removes backdoors takes away their accuracy,
    too. On large images no setting has been found that surely removes a backdoor from such a network. Where
    nothing normalises the activations, the usual rate of SGD costs accuracy as well or diverges, and a mix of
    weights is worse than both networks (``docs/auto-log.md``).

    Args:
        input_size: Shape of its images, ``[C, H, W]``.
        normalised_by: What normalises its activations (``models/normalisation.py``).
    """
    effort = LARGE if prod(input_size[1:]) > LARGE_PIXELS else USUAL
    if normalised_by == "batch":
        return effort
    if normalised_by == "nothing":
        return replace(effort, learning_rate=min(effort.learning_rate, PLAIN_RATE), least_share=1.0)
    is_proven = effort is USUAL
    return replace(effort, optimizer="adamw", learning_rate=effort.adamw_rate, proven=is_proven)
