"""A trigger from an image file: it replaces, is added to or is blended into the images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch

from bcu_cli.errors import TriggerError
from bcu_cli.images.decoding.image import Geometry
from bcu_cli.images.decoding.processes import decode_many
from bcu_cli.triggers.base import Trigger
from bcu_cli.triggers.fields import Number, checked_settings

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

MODES = ("replace", "add", "blend")
ALPHA = 0.2
"""Default strength of ``add`` and ``blend``."""


class Custom(Trigger):
    """A trigger image laid over each image where the mask is white.

    Args:
        picture: The trigger image, float ``[C, H, W]`` in [0, 1].
        mask: float ``[1, H, W]`` in [0, 1]: the weight of the trigger at each pixel.
        mode: ``replace`` (the trigger image), ``add`` (image + alpha · trigger image, clipped) or ``blend``
            ((1 - alpha) · image + alpha · trigger image).
        alpha: Strength of ``add`` and ``blend``, in [0, 1].
    """

    name = "custom"
    paper = "none: the user's own"
    numbers: ClassVar[dict[str, Number]] = {"alpha": Number(0, 1)}

    def __init__(self, *, picture: Tensor, mask: Tensor, mode: str = "replace", alpha: float = ALPHA) -> None:
        if mode not in MODES:
            raise TriggerError(f"there is no trigger mode {mode}", f"--trigger-mode takes {', '.join(MODES)}")
        checked_settings(self.name, self.numbers, {"alpha": alpha})
        self.picture = picture
        self.mask = mask
        self.mode = mode
        self.alpha = alpha

    @classmethod
    def for_images(cls, shape: tuple[int, int, int], *, seed: int = 0) -> Self:  # noqa: ARG003 - refused
        """Raise ``TriggerError``: there is no default image."""
        raise TriggerError("a trigger of your own needs an image", "give it with --trigger-image")

    @classmethod
    def from_files(
        cls,
        picture: Path,
        shape: tuple[int, int, int],
        *,
        mask: Path | None = None,
        mode: str = "replace",
        alpha: float = ALPHA,
    ) -> Self:
        """Read the trigger image and its mask, resized to ``shape`` (C, H, W).

        Args:
            picture: File of the trigger image.
            shape: Channels, height and width of the images.
            mask: File of the mask; None covers the whole image.
            mode: ``replace``, ``add`` or ``blend``.
            alpha: Strength of ``add`` and ``blend``, in [0, 1].

        Raises:
            TriggerError: One of the files is no readable image.
        """
        channels, height, width = shape
        everywhere = torch.ones(1, height, width)
        return cls(
            picture=_read(picture, Geometry(channels=channels, height=height, width=width)),
            mask=_read(mask, Geometry(channels=1, height=height, width=width)) if mask else everywhere,
            mode=mode,
            alpha=alpha,
        )

    def apply(self, images: Tensor) -> Tensor:
        """Lay the trigger image over float images ``[N, C, H, W]`` in [0, 1]."""
        picture, mask = (each.to(images, non_blocking=True) for each in (self.picture, self.mask))
        if self.mode == "replace":
            changed = picture.expand_as(images)
        elif self.mode == "add":
            changed = (images + self.alpha * picture).clamp(0.0, 1.0)
        else:
            changed = torch.lerp(images, picture.expand_as(images), self.alpha)
        return torch.lerp(images, changed, mask.expand_as(images))

    def settings(self) -> dict[str, Any]:
        """Mode and strength."""
        return {"mode": self.mode, "alpha": self.alpha}

    def tensors(self) -> dict[str, Tensor]:
        """The trigger image and its mask."""
        return {"picture": self.picture, "mask": self.mask}


def _read(path: Path, geometry: Geometry) -> Tensor:
    images, _, skipped = decode_many([path], geometry)
    if skipped:
        raise TriggerError(f"{path} is no readable image: {skipped[0][1]}", "give a PNG or JPEG file")
    return torch.from_numpy(images[0]).float() / 255.0
