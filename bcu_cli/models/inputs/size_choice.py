"""Infers the input size of embedded code that does not state it, from its layers and the user's images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from bcu_cli.errors import AnswersError, ArchitectureError, BcuError
from bcu_cli.models.classifier import Classifier
from bcu_cli.models.embedded.opening import answers, identity_preprocessing, noise
from bcu_cli.models.inputs import fingerprint
from bcu_cli.models.preprocessing import GREY_NORMALISATIONS, NORMALISATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from bcu_cli.models.preprocessing import Preprocessing

#: Widely used sides of an input in pixels.
USUAL_SIDES = (28, 32, 64, 96, 128, 224, 256, 299, 384)
_LIKE = 1.25
"""Sides within this ratio of each other are not told apart by BatchNorm statistics."""
_CONTRADICTION = 1.1
"""Ratio of distances by which a side contradicts that of the images, or theirs the architecture's."""
_IMAGES, _LAYERS = 8, 4
"""Images and layers by which sides are compared: the same images at each, since few fit worse than many."""


def infer_side(
    network: nn.Module,
    channels: int,
    *,
    images: Callable[[Preprocessing], Tensor] | None,
    side_of_images: int | None,
    what: str,
) -> tuple[int, str]:
    """Infer height and width of a network's input, in pixels, and the source of the value.

    A network that flattens its features before a linear layer accepts only one size. Any other network is
    given the size of the images, if they all have the same one and BatchNorm statistics do not contradict.

    Args:
        network: The network without normalisation.
        channels: Channels of its input.
        images: Gives images ``float [N, C, H, W]`` in [0, 1]; None if there are none.
        side_of_images: Height and width that all images have; None where they differ.
        what: Name of the file in errors.

    Raises:
        ArchitectureError: Neither layers nor images decide.
        AnswersError: The output is no logits at any size.
    """
    refusals = {side: _refusal(network, channels, side, what) for side in USUAL_SIDES}
    usual = [side for side, refusal in refusals.items() if refusal is None]
    if side_of_images is not None and _refusal(network, channels, side_of_images, what) is None:
        others = [s for s in usual if max(s, side_of_images) > _LIKE * min(s, side_of_images)]
        if images is not None:
            _refuse_contradiction(network, channels, images, side_of_images, others, what)
        return side_of_images, "size of the images, which the network accepts"
    if len(usual) == 1 and usual[0] != USUAL_SIDES[-1]:
        return usual[0], "the only usual size that its layers accept"
    for refusal in refusals.values():
        if not usual and isinstance(refusal, AnswersError):
            raise refusal
    tried = (
        f"its layers accept {' and '.join(map(str, usual[:3]))}" if usual else "it fails at the usual ones"
    )
    theirs = (
        "the images differ in size" if side_of_images is None else f"the images are {side_of_images} wide"
    )
    raise ArchitectureError(
        f"the input size of {what} is not known: {tried}, {theirs if images else 'and no images were given'}",
        f"give --input-size, for example --input-size {usual[0] if usual else 224}",
    )


def refuse_other_side(
    network: nn.Module,
    size: tuple[int, int, int],
    *,
    images: Callable[[Preprocessing], Tensor],
    side_of_images: int,
    name: str,
    what: str,
) -> None:
    """Refuse an architecture's usual input size if the images fit better as they are.

    Args:
        network: The network without normalisation.
        size: Channels, height and width that the architecture is usually trained with.
        images: Gives images ``float [N, C, H, W]`` in [0, 1].
        side_of_images: Height and width that all images have.
        name: Name of the architecture in errors.
        what: Name of the file in errors.

    Raises:
        ArchitectureError: BatchNorm statistics speak for the size of the images.
    """
    channels, side, _ = size
    alike = max(side, side_of_images) <= _LIKE * min(side, side_of_images)
    if alike or _refusal(network, channels, side_of_images, what) is not None:
        return
    sampled = images(identity_preprocessing((channels, side_of_images, side_of_images))).float()
    usual, own = (_distance(network, sampled, one) for one in (side, side_of_images))
    if usual is not None and own is not None and usual > _CONTRADICTION * own:
        raise ArchitectureError(
            f"the input size of {what} is not known: {name} is usually trained at {side} (distance of "
            f"BatchNorm statistics {usual:.2f}), but the images fit better as they are, at {side_of_images} "
            f"({own:.2f})",
            f"give --input-size {side_of_images} or --input-size {side}",
        )


def _refusal(network: nn.Module, channels: int, side: int, what: str) -> BcuError | None:
    """The error of a network on inputs of a side; None if it accepts them."""
    size = (channels, side, side)
    try:
        answers(Classifier(network, identity_preprocessing(size), 0, name=what).eval(), noise(1, size), what)
    except BcuError as error:
        return error
    return None


def _refuse_contradiction(
    network: nn.Module,
    channels: int,
    images: Callable[[Preprocessing], Tensor],
    side: int,
    others: Sequence[int],
    what: str,
) -> None:
    """Refuse the side of the images if they fit the BatchNorm statistics better at another usual side."""
    sampled = images(identity_preprocessing((channels, side, side))).float()
    own = _distance(network, sampled, side)
    if own is None or not others:
        return
    distances = {other: _distance(network, sampled, other) or own for other in others}
    best = min(distances, key=lambda other: distances[other])
    if own > _CONTRADICTION * distances[best]:
        raise ArchitectureError(
            f"the input size of {what} is not known: the images are {side} wide (distance of BatchNorm "
            f"statistics {own:.2f}), but they fit better at {best} ({distances[best]:.2f})",
            f"give --input-size {best} or --input-size {side}",
        )


def _distance(network: nn.Module, images: Tensor, side: int) -> float | None:
    """Smallest distance of BatchNorm statistics at a side, over the usual normalisations."""
    some = images[:: max(1, len(images) // _IMAGES)][:_IMAGES]
    resized = nn.functional.interpolate(some, size=(side, side), mode="bilinear", antialias=True)
    distances = []
    for one in {1: GREY_NORMALISATIONS, 3: NORMALISATIONS}.get(images.shape[1], ()):
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (one.mean, one.std))
        distance = fingerprint.batchnorm_distance(network, (resized - mean) / std, layers=_LAYERS)
        if distance is None:
            return None
        distances.append(distance)
    return min(distances, default=None)
