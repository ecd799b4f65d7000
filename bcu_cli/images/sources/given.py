"""Images passed to the Python API: paths, a tensor, or a torch ``Dataset``, with or without labels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bcu_cli.errors import ImagesError
from bcu_cli.images.decoding.image import in_mode
from bcu_cli.images.decoding.processes import decode_many
from bcu_cli.images.folder import FEWEST_IMAGES, ImageSet
from bcu_cli.words import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from bcu_cli.images.decoding.image import Geometry, RawImage

_SAMPLED = 256
_PAIRS = "give a Dataset of pairs of an image and its class"
_HINT = "give uint8 [N, C, H, W] of 1 or 3 channels, a list of paths, a Dataset, or a folder"


@dataclass(frozen=True, kw_only=True)
class GivenImages:
    """Images in memory or in a list of files, before they are resized for a network.

    Attributes:
        root: Name of the images in reports, such as ``<tensor>``.
        raw_images: The files, or pixels: uint8 ``[H, W, 3]``.
        labels: The class index of each image; None for unlabeled images.
        classes: Names of the classes; empty where they are not known.
    """

    root: Path
    raw_images: Sequence[RawImage]
    labels: Sequence[int] | None = None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.raw_images)

    def load(
        self,
        geometry: Geometry,
        *,
        at_most: int | None = None,
        generator: torch.Generator | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> ImageSet:
        """Decode the images.

        Args:
            geometry: Size and cropping of the decoded images.
            at_most: Number of images to select at random where there are more; None takes all.
            generator: Generator of the random selection.
            on_progress: Called with (images decoded since the last call, images in all).
        """
        order = list(range(len(self)))
        if at_most is not None and len(self) > at_most:
            drawn = torch.randperm(len(self), generator=generator)[:at_most].sort().values
            order = drawn.tolist()
        raw_images = [self.raw_images[i] for i in order]
        notes: dict[str, int] = {}
        report = (lambda done: on_progress(done, len(raw_images))) if on_progress else None
        decoded, kept, skipped = decode_many(raw_images, geometry, on_progress=report, notes=notes)
        labels = None
        if self.labels is not None:
            labels = torch.tensor([self.labels[order[i]] for i in kept], dtype=torch.int64)
        return ImageSet(
            images=torch.from_numpy(decoded),
            labels=labels,
            classes=self.classes,
            skipped=tuple((self._name(raw_images[i]), reason) for i, reason in skipped),
            found=len(self),
            root=self.root,
            scaled=tuple((self._name(raw_images[i]), note) for note, i in notes.items()),
        )

    def labelled(
        self,
        geometry: Geometry,
        classes: tuple[str, ...],
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> ImageSet:
        """Decode labelled images for a model.

        Args:
            geometry: Size and cropping of the decoded images.
            classes: The model's class names, which must include those of the images; empty where it gives
                none.
            on_progress: Called with (images decoded since the last call, images in all).

        Raises:
            ImagesError: The images have no labels, or a class that the model does not have.
        """
        if self.labels is None:
            raise ImagesError(
                f"{self.root} has no labels", "give a Dataset of pairs of an image and its class"
            )
        data = self.load(geometry, on_progress=on_progress)
        number = 1 + max(self.labels, default=-1)
        names = self.classes or classes or tuple(map(str, range(number)))
        if number > len(names) or min(self.labels, default=0) < 0:
            raise ImagesError(
                f"{self.root} has a class {number - 1}, and {len(names)} names", "name every class"
            )
        if not classes or names == classes:
            return replace(data, classes=names)
        if unknown := sorted(set(names) - set(classes)):
            raise ImagesError(
                f"{self.root} has a class {unknown[0]}, which is none of the model's classes",
                f"the model's classes are {', '.join(classes)}",
            )
        order = torch.tensor([classes.index(name) for name in names])
        assert data.labels is not None  # since self.labels is not  # noqa: S101
        return replace(data, labels=order[data.labels], classes=classes)

    def sample(self, geometry: Geometry) -> Tensor:
        """Decode at most 256 of the images, spread evenly: float32 ``[N, C, H, W]`` in [0, 1].

        Raises:
            ImagesError: None of these images is readable.
        """
        chosen = self.raw_images[:: max(1, len(self) // _SAMPLED)][:_SAMPLED]
        decoded, _, _ = decode_many(chosen, geometry)
        if len(decoded) == 0:
            raise ImagesError(f"{self.root} holds no readable images", _HINT)
        return torch.from_numpy(decoded).float() / 255.0

    def _name(self, image: RawImage) -> Path:
        return image if isinstance(image, Path) else self.root


def given(images: Any, *, labelled: bool = False) -> GivenImages:
    """Convert images of a supported type to :class:`GivenImages`.

    Args:
        images: A uint8 tensor ``[N, C, H, W]`` with C of 1 or 3, a sequence of paths, or a map-style
            ``torch.utils.data.Dataset`` of images or of pairs (image, class). Images of a ``Dataset`` are
            PIL images, or arrays or tensors ``[C, H, W]``, uint8 or floats in [0, 1].
        labelled: Whether labels are required; only a ``Dataset`` of pairs has them.

    Raises:
        ImagesError: The type is not supported, or there are fewer than ``FEWEST_IMAGES`` unlabeled images.
    """
    if isinstance(images, Tensor) and not labelled:
        found = GivenImages(root=Path("<tensor>"), raw_images=[_pixels(image) for image in _checked(images)])
    elif isinstance(images, list | tuple) and all(isinstance(each, str | Path) for each in images):
        if labelled:
            raise ImagesError("a list of paths has no labels", "give a folder with one subfolder a class")
        found = GivenImages(root=Path("<paths>"), raw_images=[Path(each) for each in images])
    elif hasattr(images, "__getitem__") and hasattr(images, "__len__") and not isinstance(images, Tensor):
        found = _from_dataset(images, labelled=labelled)
    else:
        raise ImagesError(f"a {type(images).__name__} is no set of images", _HINT)
    if not labelled and len(found) < FEWEST_IMAGES:
        raise ImagesError(
            f"{found.root} holds {number_of(len(found), 'image')}; at least {FEWEST_IMAGES} are needed",
            "best 1,000 or more like what the model was made for",
        )
    return found


def _from_dataset(images: Any, *, labelled: bool) -> GivenImages:
    raw_images, labels = [], []
    for i in range(len(images)):
        item = images[i]
        pair = isinstance(item, tuple | list)
        if labelled and not (pair and len(item) > 1):
            raise ImagesError(
                "the Dataset gives images without labels", "give pairs of an image and its class"
            )
        raw_images.append(_pixels(item[0] if pair else item))
        if labelled:
            labels.append(int(item[1]))
    names = tuple(str(name) for name in getattr(images, "classes", ()))
    return GivenImages(
        root=Path(f"<{type(images).__name__}>"),
        raw_images=raw_images,
        labels=labels if labelled else None,
        classes=names if labelled else (),
    )


def _checked(images: Tensor) -> Tensor:
    if images.dim() != 4 or images.shape[1] not in {1, 3} or images.dtype != torch.uint8:
        kind = str(images.dtype).removeprefix("torch.")
        raise ImagesError(f"a tensor {list(images.shape)} of {kind} is no set of images", _HINT)
    return images


def _pixels(image: Any) -> NDArray[np.uint8]:
    """Convert one image to uint8 ``[H, W, 3]``."""
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise ImagesError(
                f"an image of Pillow's mode {image.mode} has more than 8 bits per channel",
                "scale it to 8 bits, or give the path of its file",
            )
        return np.asarray(in_mode(image, "RGB"))
    pixels = torch.as_tensor(image)
    if pixels.dim() != 3 or pixels.shape[0] not in {1, 3}:
        raise ImagesError(
            f"an image of shape {list(pixels.shape)} is not [C, H, W] of 1 or 3 channels", _HINT
        )
    if pixels.is_floating_point():
        low, high = float(pixels.min()), float(pixels.max())
        if not 0.0 <= low <= high <= 1.0:
            raise ImagesError(
                f"an image has values from {low:.3g} to {high:.3g}, and not in [0, 1]",
                "give images before they are normalised",
            )
        pixels = (pixels * 255.0).round().to(torch.uint8)
    elif pixels.dtype != torch.uint8:
        kind = str(pixels.dtype).removeprefix("torch.")
        raise ImagesError(f"an image of {kind} is neither uint8 nor floats in [0, 1]", _HINT)
    if pixels.shape[0] == 1:
        pixels = pixels.expand(3, -1, -1)
    array: NDArray[np.uint8] = pixels.permute(1, 2, 0).contiguous().numpy()
    return array
