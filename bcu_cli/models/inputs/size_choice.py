"""Infers the input size of embedded code that does not state it, from its layers and the user's images."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from bcu_cli.errors import AnswersError, ArchitectureError, BcuError
from bcu_cli.models.classifier import Classifier
from bcu_cli.models.embedded.opening import answers, identity_preprocessing, noise
from bcu_cli.models.inputs import consistency, fingerprint
from bcu_cli.models.preprocessing import GREY_NORMALISATIONS, NORMALISATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from bcu_cli.models.preprocessing import Normalisation, Preprocessing

#: Widely used sides of an input in pixels.
USUAL_SIDES = (28, 32, 64, 96, 128, 224, 256, 299, 384)
_LIKE = 1.25
"""Sides within this ratio of each other are not told apart by BatchNorm statistics."""
_FAR = 8
"""Sides beyond this ratio of that of the images are not tried."""
_CONTRADICTION = 1.1
"""Ratio of distances by which the size of the images contradicts an architecture's."""
_CONFIRMED = 1.1
"""Ratio of distances by which the side of the images must fit better than any unlike one."""
_MATCHING = 0.025
"""Largest distance of images that match a network's training images, at their own side.

Twice the largest one (0.012) of test images with networks of their own data, in the calibration half of
``examples/benchmarks/preprocessing.py``. Other images may fit the first layers best unresized, whatever the
network was trained at. Few images are further away by chance (32 by about 0.015), so they ask sooner.
"""
_IMAGES, _LAYERS = 32, 4
"""Images and layers by which sides are compared: the same images at each, since few fit worse than many."""
_TINY = 1e-3


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
    given the size of the images, if they all have the same one and BatchNorm statistics confirm it. Answers
    do not: they are as consistent on other images at the size of those.

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
        others = [s for s in usual if _LIKE < max(s, side_of_images) / min(s, side_of_images) <= _FAR]
        if images is not None and others:
            sampled = images(identity_preprocessing((channels, side_of_images, side_of_images))).float()
            _refuse_unconfirmed(network, sampled, [side_of_images, *others], what)
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
    sampled = images(identity_preprocessing((channels, side_of_images, side_of_images)))
    sampled = consistency.evenly(sampled, _IMAGES)
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


def _refuse_unconfirmed(network: nn.Module, images: Tensor, sides: Sequence[int], what: str) -> None:
    """Refuse the side of the images unless BatchNorm statistics confirm it.

    Args:
        network: The network without normalisation.
        images: Images ``float [N, C, H, W]`` in [0, 1] as they are.
        sides: Their side, then the usual ones that are unlike it.
        what: Name of the file in errors.

    Raises:
        ArchitectureError: There are no statistics, another side fits as well, or the images are unlike those
            of the training.
    """
    own = sides[0]
    fits, measure = _fits(network, images, sides, what)
    other = max(sides[1:], key=lambda side: fits[side])
    doubt = _doubt(network, images, fits[own] / fits[other], measure)
    if doubt:
        first, second = sorted((own, other), key=lambda side: -fits[side])
        raise ArchitectureError(
            f"the input size of {what} is not known: the images are {own} wide "
            f"({_shown(fits[own], measure)}), but {doubt} at {other} ({_shown(fits[other], measure)})",
            f"give --input-size {first} or --input-size {second}, whichever it was trained at",
        )


def _doubt(network: nn.Module, images: Tensor, ratio: float, measure: str) -> str:
    """Why the side of the images is not sure, before the words "at" and another side; empty if it is sure.

    Args:
        network: The network without normalisation.
        images: Images ``float [N, C, H, W]`` in [0, 1] as they are.
        ratio: How well they fit as they are, relative to the best unlike side.
        measure: What was measured, ``distance`` or ``consistency``.
    """
    if measure == "consistency":
        return "it has no BatchNorm statistics to confirm that, and runs"
    if ratio < _CONFIRMED:
        return f"they fit {'as well' if ratio >= 1 else 'better'}"
    sampled = fingerprint.sample(images)
    distance = _distance(network, sampled, images.shape[-1])
    if distance is not None and distance > _MATCHING:
        measured = f"distance {distance:.2f} for {len(sampled)} images"
        return f"they are unlike those of its training ({measured}), and it runs"
    return ""


def _fits(
    network: nn.Module, images: Tensor, sides: Sequence[int], what: str
) -> tuple[dict[int, float], str]:
    """How well a network fits images at each side, above 0, and what was measured.

    It is one over the distance of BatchNorm statistics, or the consistency of answers where there are none,
    with the normalisation that is best for the images as they are.
    """
    channels, own = images.shape[1], sides[0]
    usual = {1: GREY_NORMALISATIONS, 3: NORMALISATIONS}.get(channels, ())
    few = consistency.evenly(images, _IMAGES)
    if _nearest(network, few, own, usual[:1])[0] is not None:
        best = _nearest(network, few, own, usual)[1]
        distances = {side: _nearest(network, few, side, best)[0] for side in sides}
        return {side: 1 / max(distance or 0.0, _TINY) for side, distance in distances.items()}, "distance"
    provisional = identity_preprocessing((channels, own, own))
    some = consistency.evenly(images, consistency.FEW)
    if usual:
        first = consistency.compare(network, provisional, some, usual, what).table[0][0]
        provisional = replace(provisional, mean=first.mean, std=first.std)
    fits = {
        side: max(consistency.consistency(network, provisional, _resized(some, side), what), _TINY)
        for side in sides
    }
    return fits, "consistency"


def _shown(fit: float, measure: str) -> str:
    if measure == "distance":
        return f"distance of BatchNorm statistics {1 / fit:.2f}"
    return f"consistency of answers {fit:.2f}"


def _distance(network: nn.Module, images: Tensor, side: int) -> float | None:
    """Smallest distance of BatchNorm statistics at a side, over the usual normalisations."""
    usual = {1: GREY_NORMALISATIONS, 3: NORMALISATIONS}.get(images.shape[1], ())
    return _nearest(network, images, side, usual)[0]


def _nearest(
    network: nn.Module, images: Tensor, side: int, normalisations: Sequence[Normalisation]
) -> tuple[float | None, Sequence[Normalisation]]:
    """Smallest distance of BatchNorm statistics at a side, and the normalisation that has it."""
    resized = _resized(images, side)
    nearest: tuple[float | None, Sequence[Normalisation]] = (None, ())
    for one in normalisations:
        distance = fingerprint.distance_from_training(network, resized, one, layers=_LAYERS)
        if distance is None:
            return None, ()
        if nearest[0] is None or distance < nearest[0]:
            nearest = distance, (one,)
    return nearest


def _resized(images: Tensor, side: int) -> Tensor:
    return nn.functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
