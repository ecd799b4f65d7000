"""Loading of models and images for the workflows, with events for progress and notices."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from bcu_cli import events, limits
from bcu_cli.errors import CheckpointError, ImagesError
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import Generator, Tensor

    from bcu_cli.checkpoints import Checkpoint
    from bcu_cli.images.decoding.image import Geometry
    from bcu_cli.images.folder import ImageSet, Part
    from bcu_cli.images.sources.given import GivenImages
    from bcu_cli.images.sources.listing import Listing
    from bcu_cli.models import Loaded


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The user's options on reading a model; None is determined from the file."""

    arch: str | None = None
    input_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    weights_key: str | None = None


def load_model(
    path: Path, options: ModelOptions, *, pictures: Path | str | GivenImages | None, download: bool = False
) -> Loaded:
    """Load a model file as a classifier, and report notices.

    Args:
        path: The file.
        options: The user's options on reading it.
        pictures: Images that may decide what the file leaves open, by BatchNorm statistics: a folder, a value
            of ``--data``, or images in memory. None without images.
        download: Whether ``--download`` was given.

    Raises:
        BcuError: The file cannot be read, is not safe, or is not a classifier that can be rebuilt.
    """
    from bcu_cli.models import load

    checkpoint = _read(path, options.weights_key)
    for finding in checkpoint.findings:
        events.warn(f"{path}: {finding.message}")
    with _sampler(pictures, download=download) as source:
        loaded = load(
            checkpoint,
            arch=options.arch,
            input_size=options.input_size,
            mean=options.mean,
            std=options.std,
            images=(lambda preprocessing: source.take(preprocessing.geometry)) if source else None,
            side_of_images=source.side if source else None,
        )
    events.say(f"{path.name}: {'; '.join(loaded.evidence)}")
    _say_choice(checkpoint)
    return loaded


def _say_choice(checkpoint: Checkpoint) -> None:
    """Report which of several weights were taken, and how to take other ones."""
    if checkpoint.others:
        taken = "/".join(checkpoint.nesting) or "its outermost table"
        others = " or ".join(f"--weights-key {name or repr('')}" for name in checkpoint.others)
        events.warn(
            f"{checkpoint.path.name} holds several weights: {taken} is taken ({checkpoint.choice}); "
            f"{others} takes others"
        )


def _read(path: Path, weights_key: str | None) -> Checkpoint:
    """Read a model file with limits on memory and time."""
    from bcu_cli.checkpoints import read
    from bcu_cli.checkpoints.reading import model_in
    from bcu_cli.checkpoints.shards import size_with_parts

    file = model_in(path)
    try:
        with limits.reading_limits(file, size_with_parts(file)):
            return read(file, weights_key=weights_key)
    except (CheckpointError, MemoryError, RuntimeError) as error:
        if not limits.is_lack_of_memory(error):
            raise
        message = f"{path} takes more memory to read than a file of its size should, or than there is"
        hint = "nothing is known of it; if the machine has little memory left, use a larger one"
        raise CheckpointError(message, hint, rule="reader-out-of-memory") from error


@dataclass(frozen=True)
class _Source:
    """Images that may decide what a model file leaves open.

    Args:
        take: Samples images in a given shape.
        side: Gives height and width of the images as they are; None where these differ.
    """

    take: Callable[[Geometry], Tensor]
    side: Callable[[], int | None]


@contextmanager
def _sampler(pictures: Path | str | GivenImages | None, *, download: bool) -> Iterator[_Source | None]:
    """Give the images to sample from; a zip file is unpacked once, at the first use."""
    if pictures is None:
        yield None
        return
    from bcu_cli.images.sources.common_side import common_side

    if not isinstance(pictures, Path | str):
        raw = pictures.raw_images
        yield _Source(pictures.sample, lambda: common_side(raw))
        return
    from bcu_cli.images.folder import sample
    from bcu_cli.images.sources.labelled import open_source
    from bcu_cli.images.sources.listing import list_images

    with ExitStack() as stack:

        @cache
        def part() -> Part:
            return stack.enter_context(open_source(str(pictures), download=download)).test()

        @cache
        def listing(root: Path) -> Listing:
            return list_images(root)

        def take(geometry: Geometry) -> Tensor:
            if isinstance(pictures, Path):
                return sample(listing(pictures), geometry)
            return part().sample(geometry)

        def side() -> int | None:
            folder = pictures if isinstance(pictures, Path) else None
            return common_side(listing(folder) if folder is not None else part().raw_images)

        yield _Source(take, side)


def geometry(shape: tuple[int, int, int]) -> Geometry:
    """The geometry for images of shape (C, H, W), which crops only what does not fit."""
    from bcu_cli.images.decoding.image import Geometry

    channels, height, width = shape
    return Geometry(channels=channels, height=height, width=width)


def load_to_train(
    spec: str, size: Geometry, *, seed: int, download: bool = False
) -> tuple[ImageSet, ImageSet]:
    """Labelled images to train on, and others to measure on: the test part, or a held-out tenth.

    Args:
        spec: A value of ``--data``.
        size: Geometry of the resulting images.
        seed: Seed of the choice of held-out images.
        download: Whether ``--download`` was given.

    Raises:
        ImagesError: There are no images, fewer than two classes, or a class without images.
    """
    import torch

    from bcu_cli.images.folder import FEWEST_IMAGES, hold_out
    from bcu_cli.images.sources.labelled import open_source

    with open_source(spec, download=download) as source:
        part = source.train()
        rest = (
            source.test() if source.divided else None
        )  # opened before the long work, so that errors come early
        if rest and rest.hidden is part.hidden:  # both parts are of one archive: reported once
            rest = replace(rest, hidden=type(rest.hidden)())
        data = with_bar(lambda bar: part.load(size, every_class=True, on_progress=bar), part.root)
        if rest:
            names = data.classes
            return data, with_bar(lambda bar: rest.load(size, classes=names, on_progress=bar), rest.root)
    if len(data) < FEWEST_IMAGES:
        raise ImagesError(
            f"{data.root} holds {number_of(len(data), 'readable image')}; "
            f"at least {FEWEST_IMAGES} are needed",
            "a tenth of them is held out to measure on; add some to each class",
        )
    return hold_out(data, 0.1, most=10_000, generator=torch.Generator().manual_seed(seed))


def load_unlabeled(
    images: Path | GivenImages, geometry: Geometry, *, at_most: int | None, generator: Generator
) -> ImageSet:
    """Images without labels, decoded for a model.

    Args:
        images: A folder, or images in memory.
        geometry: Geometry of the resulting images.
        at_most: Most images, drawn at random; None takes all.
        generator: Random generator of the draw.

    Raises:
        ImagesError: There are no images, or too few.
    """
    from bcu_cli.images import folder

    if isinstance(images, Path):
        listing = folder.find_unlabeled(images, at_most=at_most, generator=generator)
        data = with_bar(lambda bar: folder.load(listing, geometry, on_progress=bar), images)
    else:
        data = with_bar(
            lambda bar: images.load(geometry, at_most=at_most, generator=generator, on_progress=bar),
            images.root,
        )
    folder.require_enough(len(data), data)
    return data


def load_to_measure(
    spec: str | GivenImages,
    geometry: Geometry,
    classes: tuple[str, ...],
    *,
    certain: bool = True,
    download: bool = False,
) -> ImageSet:
    """Labelled images to measure on: the test part, or all images where there is none.

    Args:
        spec: A value of ``--data``, or labelled images in memory.
        geometry: Geometry of the resulting images.
        classes: Class names of the model in label order; empty where it has none.
        certain: Whether the images must have these names; else others are taken in their own order.
        download: Whether ``--download`` was given.

    Raises:
        ImagesError: There are no images, or images of a class that the model lacks.
    """
    from bcu_cli.images.sources.labelled import open_source

    if not isinstance(spec, str):
        names = _matching(classes, spec.classes, certain=certain)
        return with_bar(lambda bar: spec.labelled(geometry, names, on_progress=bar), spec.root)
    with open_source(spec, download=download) as source:
        part = source.test()
        names = _matching(classes, part.classes, certain=certain)
        return with_bar(lambda bar: part.load(geometry, classes=names, on_progress=bar), part.root)


def _matching(names: tuple[str, ...], folders: tuple[str, ...], *, certain: bool) -> tuple[str, ...]:
    """The names of a model's classes, by which folders are found; empty where these have other names.

    Names that bcu did not write may be in another language, or shorter.
    """
    from bcu_cli.images.folder import is_imagenet

    others = sorted(set(folders) - set(names))
    if certain or len(folders) != len(names) or not others or is_imagenet(folders):
        return names
    events.warn(
        f"the model names its classes {names[0]}, {names[1]}, …, and there is a folder {others[0]}: the "
        "folders are taken for its outputs in alphabetical order"
    )
    return ()


def load_labels_of(part: Part, loaded: Loaded) -> ImageSet:
    """Decode labelled images for a model; the classes must match its names or their number.

    Raises:
        ImagesError: There are no images, or they are not of the model's classes.
    """
    size = loaded.preprocessing.geometry
    names = _matching(loaded.classes, part.classes, certain=loaded.names_are_certain)
    data = with_bar(lambda bar: part.load(size, classes=names, on_progress=bar), part.root)
    refuse_other_classes(data, loaded.classifier.num_classes)
    return data


def refuse_other_classes(data: ImageSet, count: int) -> None:
    """Refuse labelled images that have not ``count`` classes, as the model has.

    Raises:
        ImagesError: The number of classes differs.
    """
    if len(data.classes) != count:
        raise ImagesError(
            f"{data.root} has {number_of(len(data.classes), 'class', 'classes')}, the model has {count}",
            "which is which cannot be told; keep a subfolder for every class, empty ones too",
        )


def say_scaled(folder: Path, scaled: Iterable[tuple[Path, str]]) -> None:
    """Report how values of more than 8 bits were scaled, once for each way."""
    for path, how in scaled:
        events.say(f"of more than 8 bits in {folder}, first {path}: {how}")


def with_bar(load: Callable[[Callable[[int, int], None]], ImageSet], folder: Path) -> ImageSet:
    """Load images with progress, and report unreadable and skipped files.

    Args:
        load: Loads the images; its argument is called with (files since the last call, files in all).
        folder: The folder, for messages.
    """
    with events.progress(f"reading {folder}") as part:
        data = load(part.advance)
    if data.skipped:
        path, reason = data.skipped[0]
        one, many = f"file in {folder} is no readable image", f"files in {folder} are no readable images"
        events.warn(f"{number_of(len(data.skipped), one, many)}, first {path}: {reason}")
    if first := data.hidden.first:
        events.say(f"hidden in {folder}, and left out: {data.hidden.number}, first {first}")
    say_scaled(folder, data.scaled)
    return data
