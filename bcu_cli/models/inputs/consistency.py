"""Infers the preprocessing of a network without BatchNorm from the consistency of its answers.

A network that gets images prepared as in its training is confident, gives all views of an image the same
class, and spreads the images over its classes. One number measures all three: how much the answer to one view
of an image tells about the class of its other views.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bcu_cli.models.classifier import Classifier
from bcu_cli.models.inputs.fingerprint import CHUNK, Verdict
from bcu_cli.models.outputs import find_ending
from bcu_cli.models.preprocessing import Normalisation, Preprocessing, nearly_equal

if TYPE_CHECKING:
    from collections.abc import Sequence

# Of three small networks without BatchNorm, one with two sets of images, each had the right normalisation
# first. A different one had up to 0.91 of its consistency: such a case asks.
#: Smallest share by which the best candidate must be more consistent than any different one.
CLEAR_SHARE = 0.2
#: Least consistency, in nats, of a network that knows the images; a chance answer has 0 or less.
LEAST = 0.3
#: Images to compare normalisations with, and to compare sizes with.
IMAGES, FEW = 96, 24


def consistency(network: nn.Module, preprocessing: Preprocessing, images: Tensor, name: str) -> float:
    """How much a network's answer to a view of an image tells about the class of its other views.

    It is a lower bound of a mutual information: the entropy of the classes, minus the cross-entropy of the
    answer to each view with the class that the other views have together.

    Args:
        network: The network without normalisation, in evaluation mode.
        preprocessing: Preprocessing of its images, of which channel order, mean and std are applied here.
        images: At least one image, ``float [N, C, H, W]`` in [0, 1].
        name: Name of the network in errors.

    Returns:
        The information in nats, at most ``log(K)``; ``-inf`` for answers that are not finite.

    Raises:
        BcuError: The output is no logits of at least two classes.
    """
    logits = logits_of_views(network, preprocessing, _views(images), name)
    logs = torch.stack([each.log_softmax(1) for each in logits])  # [V, N, K]
    return _information(logs) if logs.isfinite().all() else -math.inf


@torch.no_grad()
def logits_of_views(
    network: nn.Module, preprocessing: Preprocessing, views: Sequence[Tensor], name: str
) -> list[Tensor]:
    """A network's logits for views of images, float64 ``[N, K]`` for each view; its ending is unwrapped.

    Args:
        network: The network without normalisation, in evaluation mode.
        preprocessing: Preprocessing of its images, of which channel order, mean and std are applied here.
        views: Views of the images, each ``float [N, C, H, W]`` in [0, 1]; the first tells the ending.
        name: Name of the network in errors.

    Raises:
        BcuError: The output is no logits of at least two classes.
    """
    classifier = Classifier(network, preprocessing, 0, name=name).eval()
    chunk = getattr(network, "group", None) or CHUNK  # some networks take a fixed number of images
    classifier.ending = find_ending(network, classifier.normalised(views[0][:chunk]), name)[0]
    return [
        torch.cat([classifier(view[i : i + chunk]) for i in range(0, len(view), chunk)]).double()
        for view in views
    ]


def _information(logs: Tensor) -> float:
    """The information in log-probabilities ``[V, N, K]`` of V views of N images."""
    together = logs.sum(0)
    cross_entropy, counts = 0.0, torch.zeros(logs.shape[2], dtype=torch.double)
    for one in logs:
        classes = (together - one).argmax(1)
        cross_entropy -= float(one.gather(1, classes[:, None]).mean()) / len(logs)
        counts += torch.bincount(classes, minlength=len(counts)) / classes.numel() / len(logs)
    entropy = -float(torch.special.xlogy(counts, counts).sum())
    return entropy - cross_entropy


def compare(
    network: nn.Module,
    provisional: Preprocessing,
    images: Tensor,
    normalisations: Sequence[Normalisation],
    name: str,
) -> Verdict:
    """Find the normalisation with which a network's answers are most consistent.

    Args:
        network: The network without normalisation, in evaluation mode.
        provisional: Preprocessing of its images but for mean and std.
        images: Natural images ``float [N, C, H, W]`` in [0, 1].
        normalisations: The candidates; those nearly equal to the best one are not compared with it.
        name: Name of the network in errors.

    Raises:
        BcuError: The output is no logits of at least two classes.
    """
    some = evenly(images, IMAGES)
    table = []
    for one in normalisations:
        preprocessing = replace(provisional, mean=one.mean, std=one.std)
        table.append((one, consistency(network, preprocessing, some, name)))
    table.sort(key=lambda pair: -pair[1])
    best, most = table[0]
    clear = all(is_clear(most, value) for one, value in table if not nearly_equal(one, best))
    return Verdict(best=best if clear else None, table=tuple(table), measure="consistency")


def is_clear(most: float, other: float, share: float = CLEAR_SHARE) -> bool:
    """Whether answers are consistent at all, and by a share more so than others."""
    return most >= LEAST and other <= (1 - share) * most


def evenly(images: Tensor, count: int) -> Tensor:
    """At most ``count`` of the images, spread evenly."""
    return images[:: max(1, len(images) // count)][:count].float()


def _views(images: Tensor) -> list[Tensor]:
    """The images, mirrored, shifted by an eighth in two directions, and enlarged by an eighth."""
    height, width = images.shape[-2:]
    reach = max(1, min(height, width) // 8)
    framed = nn.functional.pad(images, (reach,) * 4, mode="replicate")
    inner = images[..., reach // 2 : height - reach // 2, reach // 2 : width - reach // 2]
    return [
        images,
        images.flip(3),
        framed[..., :height, :width],
        framed[..., 2 * reach :, 2 * reach :],
        nn.functional.interpolate(inner, size=(height, width), mode="bilinear", antialias=True),
    ]
