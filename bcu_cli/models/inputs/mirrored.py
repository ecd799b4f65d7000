"""Tells architectures with the same tensors apart by their answers to images and their mirror images.

Most classifiers are trained with images that are mirrored at random, and then answer an image and its mirror
image alike. The same weights under another padding or pooling were not trained so, and answer less alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bcu_cli.models.inputs.consistency import logits_of_views

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bcu_cli.models.preprocessing import Preprocessing

# EfficientNet-Lite0 of TensorFlow, with 24 images of Tiny-ImageNet: its median disagreement was 0.07. With
# the padding of PyTorch it was 0.16, and 0.23 with timm's normalisation for that, each higher for 23 images.
# The other direction is the same case: turned kernels and images exchange the two paddings.
#: Images to compare.
IMAGES = 64
_CLEAR_ERRORS = 4.0
"""Least surplus of images with the lower disagreement, in standard errors of a fair coin."""
_CLEAR_RATIO = 1.4
"""Least ratio of the median disagreements of two networks."""
_LARGEST = 0.5
"""Largest median disagreement of a network that was trained with mirrored images."""


def disagreement(network: nn.Module, preprocessing: Preprocessing, images: Tensor, name: str) -> Tensor:
    """How far a network's logits for each image are from those for its mirror image.

    Args:
        network: The network without normalisation, in evaluation mode.
        preprocessing: Preprocessing of its images, of which channel order, mean and std are applied here.
        images: At least two images, ``float [N, C, H, W]`` in [0, 1].
        name: Name of the network in errors.

    Returns:
        Squared distances ``[N]`` of the centred logits, in units of their variance over the images: 0 for
        equal answers, about 2 for unrelated ones; infinite for answers that are not finite or all equal.

    Raises:
        BcuError: The output is no logits of at least two classes.
    """
    views = logits_of_views(network, preprocessing, [images, images.flip(3)], name)
    plain, mirrored = (logits - logits.mean(1, keepdim=True) for logits in views)
    variance = (plain - plain.mean(0)).square().sum(1).mean()
    ratios = (plain - mirrored).square().sum(1) / variance
    return ratios if ratios.isfinite().all() else torch.full_like(ratios, torch.inf)


def is_clearly_least(one: Tensor, others: Sequence[Tensor]) -> bool:
    """Whether a network's disagreements ``[N]`` are clearly below those of others for the same images."""
    return bool(one.median() <= _LARGEST) and all(_is_below(one, other) for other in others)


def _is_below(one: Tensor, other: Tensor) -> bool:
    surplus = int((one < other).sum()) - int((one > other).sum())
    return bool(surplus >= _CLEAR_ERRORS * len(one) ** 0.5 and other.median() > _CLEAR_RATIO * one.median())
