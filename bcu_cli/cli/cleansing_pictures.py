"""The pictures of a cleansing: in memory where they fit there, else streamed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli import events
from bcu_cli.cli import output
from bcu_cli.errors import ImagesError
from bcu_cli.workflows import loading

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from bcu_cli.defenses.base import Defense
    from bcu_cli.images.decoding import Geometry
    from bcu_cli.images.folder import ImageSet
    from bcu_cli.images.listing import Listing
    from bcu_cli.images.stream import StreamedSet
    from bcu_cli.models import Loaded
    from bcu_cli.training.devices import Device

_HELD_OUT, _MOST_HELD_OUT = 0.1, 1000
_AT_ONCE = 50_000
"""Pictures that are all decoded before the training begins; more, which would take minutes, as it goes on."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Where the pictures come from, and their labels.

    Args:
        folder: Or a tar archive; None where the method needs no pictures and there are none.
        at_most: Draw this many of them; None takes all.
        pseudo_labels: Whether the model's own answers stand in for labels.
        cache: Most bytes of decoded pictures that are kept in memory.
    """

    folder: Path | None
    at_most: int | None
    pseudo_labels: bool
    cache: int


def load(
    pictures: Pictures, loaded: Loaded, kind: type[Defense[Any]], seed: int, device: Device
) -> tuple[ImageSet | StreamedSet | None, ImageSet | None]:
    """The pictures to cleanse with, and those held out to compare the two models on.

    Raises:
        ImagesError: There are none, too few, without the labels that the method needs, or so many that they
            do not fit into memory, for one that needs them there.
    """
    import torch

    from bcu_cli.images.folder import find_unlabeled, hold_out, require_enough
    from bcu_cli.images.folder import load as decode
    from bcu_cli.training.inference import predict

    if pictures.folder is None:
        return None, None
    generator = torch.Generator().manual_seed(seed)
    geometry = loading.geometry_of(loaded.classifier.preprocessing)
    if kind.needs_labels and not pictures.pseudo_labels:
        data = _load_labelled(pictures, loaded, kind, generator)
    else:
        listing = find_unlabeled(pictures.folder, at_most=pictures.at_most, generator=generator)
        many = len(listing) > _AT_ONCE or len(listing) * geometry.bytes > pictures.cache
        if many and not kind.needs_labels:
            return _stream(listing, geometry, pictures.cache, generator)
        _require_room(len(listing), geometry, pictures, kind)
        data = loading.with_bar(lambda bar: decode(listing, geometry, on_progress=bar), listing.root)
        require_enough(len(data), data)
    used, held_out = hold_out(data, _HELD_OUT, most=_MOST_HELD_OUT, generator=generator, in_place=True)
    if kind.needs_labels and pictures.pseudo_labels:
        used = replace(used, labels=predict(loaded.classifier, used.images, device))
    return used, held_out


def _stream(
    listing: Listing, geometry: Geometry, cache: int, generator: torch.Generator
) -> tuple[StreamedSet, ImageSet]:
    from bcu_cli.images.folder import divide
    from bcu_cli.images.folder import load as decode
    from bcu_cli.images.stream import open_stream

    total = len(listing) * geometry.bytes
    events.say(
        f"{len(listing):,} pictures take {output.size(total)} decoded: they are decoded as they are used, "
        + ("and kept" if total <= cache else f"and {output.size(cache)} of them kept")
    )
    rest, apart = divide(listing, _HELD_OUT, most=_MOST_HELD_OUT, generator=generator)
    held_out = loading.with_bar(lambda bar: decode(apart, geometry, on_progress=bar), listing.root)
    return open_stream(rest, held_out, geometry, cache=cache, of=len(apart)), held_out


def _load_labelled(
    pictures: Pictures, loaded: Loaded, kind: type[Defense[Any]], generator: torch.Generator
) -> ImageSet:
    from bcu_cli.images.folder import FEWEST_IMAGES, list_labelled, subfolders
    from bcu_cli.images.listing import list_files

    folder = pictures.folder
    assert folder is not None  # noqa: S101 - the caller has looked
    list_files(folder)  # says what is wrong with a folder that is none
    if not subfolders(folder):
        raise ImagesError(
            f"--method {kind.name} learns from labels, and {folder} has no class subfolders",
            "put the pictures of each class into a subfolder of its name, or let the model answer for "
            "them: --pseudo-labels",
        )
    part = list_labelled(folder)
    part = part if pictures.at_most is None else part.drawn(pictures.at_most, generator)
    _require_room(len(part.pictures), loading.geometry_of(loaded.classifier.preprocessing), pictures, kind)
    data = loading.load_labels_of(part, loaded)
    if len(data) < FEWEST_IMAGES:
        raise ImagesError(
            f"{folder} holds {len(data)} readable pictures; at least {FEWEST_IMAGES} are needed",
            "add some to each class",
        )
    return data


def _require_room(number: int, geometry: Geometry, pictures: Pictures, kind: type[Defense[Any]]) -> None:
    """Refuse so many pictures if they are not all kept decoded, for a method that needs them all.

    Raises:
        ImagesError: They are not.
    """
    if number * geometry.bytes <= pictures.cache:
        return
    from bcu_cli.images.folder import FEWEST_IMAGES

    fit = pictures.cache // geometry.bytes
    fewer = f"--max-images {fit} draws as many as fit; or " if fit >= FEWEST_IMAGES else ""
    raise ImagesError(
        f"--method {kind.name} learns from labels and needs all pictures in memory: {number:,} take "
        f"{output.size(number * geometry.bytes)} decoded, and --cache is {output.size(pictures.cache)}",
        f"{fewer}give it a larger --cache",
    )


def warn_of(used: ImageSet | StreamedSet, report: Mapping[str, Any]) -> None:
    """Say what streaming has shown: files that are no pictures, and decoding that does not keep up."""
    from bcu_cli.images.folder import ImageSet

    if isinstance(used, ImageSet):
        return
    loading.say_scaled(used.root, used.newly_scaled)
    if skipped := used.images.skipped:
        path, reason = skipped[0]
        events.warn(
            f"{len(skipped)} more files in {used.root} are no readable pictures, first {path}: {reason}; "
            "others took their places"
        )
    if warning := report["stream"]["warning"]:
        events.warn(warning)
