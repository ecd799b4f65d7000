"""IAB: a trigger of its own for each image, drawn by a network (Nguyen & Tran 2020, arXiv:2010.08138)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcu_cli.errors import TriggerError
from bcu_cli.triggers.base import Trigger
from bcu_cli.triggers.fields import check_floats

if TYPE_CHECKING:
    from collections.abc import Mapping

_LARGEST_WIDTH = 256
"""Channels at the full resolution in networks that a file may hold; an attack's have 16."""


class InputAware(Trigger):
    """Where the mask network says so, the image is replaced by what the pattern network draws for it.

    Both are learnt in the attack (``bcu_cli.attacks.iab``); fresh ones change the image at random.

    Args:
        pattern_network: Images to patterns, ``[N, C, H, W]`` in [0, 1].
        mask_network: Images to masks, ``[N, 1, H, W]`` in [0, 1].
    """

    name = "iab"
    paper = "Nguyen & Tran, Input-Aware Dynamic Backdoor Attack, NeurIPS 2020, arXiv:2010.08138"
    learnt: ClassVar[bool] = True

    def __init__(self, *, pattern_network: ImageGenerator, mask_network: ImageGenerator) -> None:
        self.pattern_network = pattern_network
        self.mask_network = mask_network

    @classmethod
    def for_images(cls, shape: tuple[int, int, int], *, seed: int = 0, width: int = 16) -> Self:
        """Two networks with random weights for images of ``shape`` (C, H, W)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pattern = ImageGenerator(shape[0], shape[0], width)
            return cls(pattern_network=pattern, mask_network=ImageGenerator(shape[0], 1, width))

    @torch.no_grad()
    def apply(self, images: Tensor) -> Tensor:
        """Trigger float images ``[N, C, H, W]`` in [0, 1]; the networks are moved to their device."""
        for network in (self.pattern_network, self.mask_network):
            network.to(images.device).eval()
        return paste(images, self.pattern_network(images), self.mask_network.as_mask(images))

    def settings(self) -> dict[str, Any]:
        """None: its weights say it all."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """The weights of both networks."""
        networks = {"pattern": self.pattern_network, "mask": self.mask_network}
        return {
            f"{name}.{key}": value.cpu()
            for name, network in networks.items()
            for key, value in network.state_dict().items()
        }

    @classmethod
    def check_tensors(cls, tensors: dict[str, Tensor], shape: tuple[int, int, int]) -> None:
        """Raise ``TriggerError`` unless these are the weights of two networks for images of ``shape``."""
        first = tensors.get("pattern.enter.weight")
        width = 1 if first is None or not first.dim() else max(1, min(_LARGEST_WIDTH, len(first)))
        with torch.device("meta"):
            made = cls.for_images(shape, width=width)
        known = {
            f"{name}.{key}": value
            for name, network in (("pattern", made.pattern_network), ("mask", made.mask_network))
            for key, value in network.state_dict().items()
        }
        if odd := sorted(set(known) ^ set(tensors)):
            what = "lacks the tensor" if odd[0] in known else "has no tensor"
            raise TriggerError(f"the trigger {cls.name} {what} {odd[0][:60]}", "write the file again")
        for name, value in known.items():
            what = f"the tensor {name} of the trigger {cls.name}"
            if value.is_floating_point():
                check_floats(what, tensors[name], tuple(value.shape))
            elif (tensors[name].dtype, tensors[name].shape) != (value.dtype, value.shape):
                raise TriggerError(f"{what} is of another type or shape", "write the file again")

    @classmethod
    def restore(cls, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Self:  # noqa: ARG003 - has none
        """The networks whose weights these are."""
        width, channels = tensors["pattern.enter.weight"].shape[:2]
        pattern, mask = ImageGenerator(channels, channels, width), ImageGenerator(channels, 1, width)
        pattern.load_state_dict(_below("pattern.", tensors))
        mask.load_state_dict(_below("mask.", tensors))
        return cls(pattern_network=pattern, mask_network=mask)


class ImageGenerator(nn.Module):
    """An image to an image: three halvings and three doublings of the resolution.

    Narrower than the authors' networks, for the sake of the CPU.

    Args:
        channels: Of the images.
        drawn: Channels of the result.
        width: Channels at the full resolution.
    """

    def __init__(self, channels: int, drawn: int, width: int = 16) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(_layer(width * 2**i, width * 2 ** min(i + 1, 2)) for i in range(3))
        self.up = nn.ModuleList(_layer(width * 2 ** min(i + 1, 2), width * 2**i) for i in (2, 1, 0))
        self.leave = nn.Conv2d(width, drawn, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, drawn, H, W]`` in [0, 1]."""
        return torch.sigmoid(2.0 * self._draw(images))

    def as_mask(self, images: Tensor) -> Tensor:
        """``[N, C, H, W]`` to ``[N, drawn, H, W]`` in [0, 1], nearly all of it close to 0 or 1."""
        return torch.sigmoid(20.0 * torch.tanh(self._draw(images)))

    def _draw(self, images: Tensor) -> Tensor:
        x = self.enter(images * 2.0 - 1.0)
        sizes = []
        for layer in self.down:
            sizes.append(x.shape[-2:])
            x = layer(F.avg_pool2d(x, 2, ceil_mode=True))
        for layer, size in zip(self.up, reversed(sizes), strict=True):
            x = layer(F.interpolate(x, size=size, mode="bilinear", align_corners=False))
        drawn: Tensor = self.leave(x)
        return drawn.float()


def paste(images: Tensor, patterns: Tensor, masks: Tensor) -> Tensor:
    """(1 - mask) · image + mask · pattern, for floats in [0, 1]."""
    return torch.lerp(images, patterns.to(images), masks.to(images).expand_as(images))


def _layer(channels_in: int, channels_out: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
