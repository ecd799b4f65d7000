"""The images of a cleansing: in memory where they fit there, else streamed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli import events
from bcu_cli.errors import ImagesError
from bcu_cli.report.text import size
from bcu_cli.words import number_of
from bcu_cli.workflows import loading

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from bcu_cli.defenses.base import Defense
    from bcu_cli.images.decoding.image import Geometry
    from bcu_cli.images.folder import ImageSet
    from bcu_cli.images.sources.listing import Listing
    from bcu_cli.images.stream import StreamedSet
    from bcu_cli.models import Loaded
    from bcu_cli.training.devices import Device
    from bcu_cli.workflows.cleanse import CleanseRequest

_HELD_OUT, _MOST_HELD_OUT = 0.1, 1000
_COMPARED, _COMPARED_OF_CLASS = 2_000, 10
"""Images whose predictions are compared with their labels before the training: so many, or of each class."""
_AT_ONCE = 50_000
"""Most images that are decoded before the training; more are streamed, to save minutes of waiting."""


def load(
    request: CleanseRequest, loaded: Loaded, kind: type[Defense[Any]], seed: int, device: Device
) -> tuple[ImageSet | StreamedSet | None, ImageSet | None]:
    """The images to train on, and the held-out images.

    Raises:
        ImagesError: There are no images, too few, or no labels for a method that needs them, or the images do
            not fit into memory for a method that needs them there.
    """
    import torch

    from bcu_cli.images.folder import find_unlabeled, hold_out, require_enough
    from bcu_cli.images.folder import load as decode
    from bcu_cli.training.inference import predict

    if request.images is None:
        return None, None
    generator = torch.Generator().manual_seed(seed)
    geometry = loaded.preprocessing.geometry
    if kind.needs_labels and not request.pseudo_labels:
        data = _load_labelled(request, loaded, kind, generator)
        _refuse_other_order(loaded, data, device)
    elif not isinstance(request.images, Path):
        data = loading.load_unlabeled(
            request.images, geometry, at_most=request.max_images, generator=generator
        )
    else:
        listing = find_unlabeled(request.images, at_most=request.max_images, generator=generator)
        many = len(listing) > _AT_ONCE or len(listing) * geometry.bytes > request.cache
        if many and not kind.needs_labels:
            return _stream(listing, geometry, request.cache, generator)
        _require_room(len(listing), geometry, request, kind)
        data = loading.with_bar(lambda bar: decode(listing, geometry, on_progress=bar), listing.root)
        require_enough(len(data), data)
    used, held_out = hold_out(data, _HELD_OUT, most=_MOST_HELD_OUT, generator=generator, in_place=True)
    if kind.needs_labels and request.pseudo_labels:
        used = replace(used, labels=predict(loaded.classifier, used.images, device))
    return used, held_out


def _refuse_other_order(loaded: Loaded, data: ImageSet, device: Device) -> None:
    """Refuse labels in another order than the outputs of the model, by its predictions for some images.

    Raises:
        ImagesError: Most images of many classes are predicted as another class each.
    """
    import torch

    from bcu_cli.evaluation.class_order import doubt_of_order
    from bcu_cli.evaluation.measures import labels_of
    from bcu_cli.training.inference import predict

    most = max(_COMPARED, _COMPARED_OF_CLASS * loaded.classifier.num_classes)
    index = torch.linspace(0, len(data) - 1, min(len(data), most)).long()
    answers = predict(loaded.classifier, data.images[index], device)
    if doubt := doubt_of_order(answers, labels_of(data)[index], data.classes):
        raise ImagesError(
            doubt,
            "name the folders so that their alphabetical order is that of the outputs, as 00, 01, 02; or use "
            "the model's predictions: --pseudo-labels",
        )


def _stream(
    listing: Listing, geometry: Geometry, cache: int, generator: torch.Generator
) -> tuple[StreamedSet, ImageSet]:
    from bcu_cli.images.folder import divide
    from bcu_cli.images.folder import load as decode
    from bcu_cli.images.stream import open_stream

    total = len(listing) * geometry.bytes
    events.say(
        f"{len(listing):,} images take {size(total)} decoded: they are decoded as they are used, "
        + ("and kept" if total <= cache else f"and {size(cache)} of them kept")
    )
    rest, apart = divide(listing, _HELD_OUT, most=_MOST_HELD_OUT, generator=generator)
    held_out = loading.with_bar(lambda bar: decode(apart, geometry, on_progress=bar), listing.root)
    return open_stream(rest, held_out, geometry, cache=cache, of=len(apart)), held_out


def _load_labelled(
    request: CleanseRequest, loaded: Loaded, kind: type[Defense[Any]], generator: torch.Generator
) -> ImageSet:
    from bcu_cli.images.folder import FEWEST_IMAGES, list_labelled, subfolders
    from bcu_cli.images.sources.labelled import parts_of
    from bcu_cli.images.sources.listing import list_files

    folder = request.images
    if not isinstance(folder, Path):
        assert folder is not None  # noqa: S101 - the caller has looked
        size, certain = loaded.preprocessing.geometry, loaded.names_are_certain
        data = loading.load_to_measure(folder, size, loaded.classes, certain=certain)
        loading.refuse_other_classes(data, loaded.classifier.num_classes)
        return data
    list_files(folder)  # refuses a path that is not a folder of images
    if train := parts_of(folder):
        raise ImagesError(
            f"{folder} has parts to train and to measure on", f"give one of them: {folder / train[0]}"
        )
    if not subfolders(folder):
        raise ImagesError(
            f"--method {kind.name} learns from labels, and {folder} has no class subfolders",
            "put the images of each class into a subfolder of its name, or use the model's "
            "predictions: --pseudo-labels",
        )
    part = list_labelled(folder)
    part = part if request.max_images is None else part.drawn(request.max_images, generator)
    _require_room(len(part.raw_images), loaded.preprocessing.geometry, request, kind)
    data = loading.load_labels_of(part, loaded)
    if len(data) < FEWEST_IMAGES:
        raise ImagesError(
            f"{folder} holds {number_of(len(data), 'readable image')}; at least {FEWEST_IMAGES} are needed",
            "add some to each class",
        )
    return data


def _require_room(number: int, geometry: Geometry, request: CleanseRequest, kind: type[Defense[Any]]) -> None:
    """Refuse more images than fit into memory, for a method that needs all of them there.

    Raises:
        ImagesError: The images do not fit.
    """
    if number * geometry.bytes <= request.cache:
        return
    from bcu_cli.images.folder import FEWEST_IMAGES

    fit = request.cache // geometry.bytes
    fewer = f"--max-images {fit} draws as many as fit; or " if fit >= FEWEST_IMAGES else ""
    raise ImagesError(
        f"--method {kind.name} learns from labels and needs all images in memory: {number:,} take "
        f"{size(number * geometry.bytes)} decoded, and --cache is {size(request.cache)}",
        f"{fewer}give it a larger --cache",
    )


def warn_of(used: ImageSet | StreamedSet, report: Mapping[str, Any]) -> None:
    """Warn of problems while streaming: unreadable files, and decoding that is too slow."""
    from bcu_cli.images.folder import ImageSet

    if isinstance(used, ImageSet):
        return
    loading.say_scaled(used.root, used.newly_scaled)
    if skipped := used.images.skipped:
        path, reason = skipped[0]
        more = number_of(
            len(skipped),
            f"more file in {used.root} is no readable image",
            f"more files in {used.root} are no readable images",
        )
        events.warn(f"{more}, first {path}: {reason}; other images replaced them")
    if warning := report["stream"]["warning"]:
        events.warn(warning)
