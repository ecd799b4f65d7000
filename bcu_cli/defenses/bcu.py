"""Backdoor Cleansing with Unlabeled Data (Pang, Sun, Ling, Chen; CVPR 2023): the paper's method.

The student is the teacher with part of each layer's weights drawn anew, more of them in deeper layers
(section 3.3, Eq. 3), then taught by the teacher on unlabeled images (section 3.2, Eq. 2; Algorithm 1).
A trigger is on none of these images, so what the teacher does on triggered ones is not passed on.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from bcu_cli.defenses.depth import Layer, measure
from bcu_cli.errors import UsageError
from bcu_cli.images.augmentation import Augmentation
from bcu_cli.training.inference import predict
from bcu_cli.training.loop import Training, TrainingOptions

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bcu_cli.models import Classifier
    from bcu_cli.training.devices import Device

RATIOS = (0.01, 0.01, 0.01, 0.03, 0.03, 0.09, 0.09, 0.27, 0.27, 0.1)
"""Section 4.1: first convolution, the eight blocks of a ResNet-18, classifier."""

PAPER_EPOCHS = 100
FEWEST_STEPS, MOST_STEPS = 900, 8000
"""The range of ``epochs=None``; the paper's settings (2,500 to 20,000 images, some held out) are inside."""

MIRROR_AGREEMENT = 0.8
"""Mirror images are used where the teacher answers the same for at least this share of them."""


@dataclass(frozen=True, kw_only=True)
class BcuOptions:
    """The method's parameters, with the paper's values.

    Args:
        strength: Factor on all re-initialisation ratios; the results are capped at 1.
        ratios: Share of weights drawn anew, from shallow to deep, three values or more: the first layer, the
            layers in between (each value takes an equal part of the depth: in a ResNet-18 one block), the
            classifier.
        temperature: At the first and the last step, linear in between (the paper gives none; 1 to 4 are the
            settings that its authors published).
        epochs: Passes over the images. None is the paper's 100, but at least ``FEWEST_STEPS`` steps and at
            most ``MOST_STEPS``.
        batch_size: Most images in a step.
        learning_rate: Of the first step; it falls to 0 along a cosine.
        momentum: Of SGD.
        weight_decay: Of SGD.
        crop_padding: Pixels of padding of the random crop; None is an eighth of the shorter side, which on
            32x32 images is the paper's 4.
        flip: Whether mirror images are used. None asks the teacher: it knows whether a mirrored photo is
            still of its class, and a mirrored traffic sign is not.
        seed: Decides the weights drawn anew, and the order and views of the images.
    """

    strength: float = 1.0
    ratios: tuple[float, ...] = RATIOS
    temperature: tuple[float, float] = (1.0, 4.0)
    epochs: int | None = None
    batch_size: int = 256
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop_padding: int | None = None
    flip: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise UsageError(f"a strength of {self.strength} makes no sense", "--strength takes 0 or more")
        if len(self.ratios) < 3 or not all(0 <= ratio <= 1 for ratio in self.ratios):
            raise UsageError(
                "--ratios takes three or more shares from 0 to 1",
                "first layer, layers in between, classifier; the paper's are " + ",".join(map(str, RATIOS)),
            )
        if not all(0 < temperature < float("inf") for temperature in self.temperature):
            raise UsageError("a temperature must be above 0", "the paper's rise from 1 to 4")


@dataclass(frozen=True, kw_only=True)
class Reinitialised:
    """What happened to one layer: its depth, the ratio asked for, and the share that was drawn anew."""

    name: str
    depth: int
    ratio: float
    weights: int
    drawn_anew: int


def ratio_of(depth: int, deepest: int, options: BcuOptions) -> float:
    """The re-initialisation ratio delta at a depth from 1 to ``deepest`` (section 4.1).

    The first layer and the classifier have ratios of their own; the depths in between are divided equally
    among the other ratios. In a ResNet-18 depths 2 to 17 are its eight blocks of two.
    """
    first, *between, last = options.ratios
    if depth == deepest:
        ratio = last
    elif depth == 1:
        ratio = first
    else:
        ratio = between[(depth - 2) * len(between) // (deepest - 2)]
    return min(1.0, ratio * options.strength)


def reinitialise(student: nn.Module, example: Tensor, options: BcuOptions) -> list[Reinitialised]:
    """Draw part of each layer's weights and biases anew, in place (Eq. 3, Algorithm 1 lines 1-5).

    Each entry is replaced with the probability of its layer's depth. New values are what PyTorch gives a
    fresh layer: uniform within 1/sqrt(fan_in). Normalisation layers are kept.

    Args:
        student: A copy of the teacher, on the CPU.
        example: A batch that it takes.
        options: The ratios.
    """
    generator = torch.Generator().manual_seed(options.seed)
    layers = measure(student, example)
    deepest = max(layer.depth for layer in layers)
    done, seen = [], set[int]()
    for layer in layers:
        ratio = ratio_of(layer.depth, deepest, options)
        fresh = {key: weight for key, weight in layer.weights.items() if id(weight) not in seen}
        seen.update(map(id, fresh.values()))  # weights that two layers share are drawn once
        drawn = sum(_redraw(weight, layer, ratio, generator) for weight in fresh.values())
        total = sum(weight.numel() for weight in fresh.values())
        done.append(
            Reinitialised(name=layer.name, depth=layer.depth, ratio=ratio, weights=total, drawn_anew=drawn)
        )
    return done


def _redraw(weight: nn.Parameter, layer: Layer, ratio: float, generator: torch.Generator) -> int:
    mask = torch.rand(weight.shape, generator=generator) < ratio
    bound = layer.fan_in**-0.5
    fresh = torch.empty(weight.shape).uniform_(-bound, bound, generator=generator)
    with torch.no_grad():
        weight.copy_(torch.where(mask, fresh.to(weight.dtype), weight))
    return int(mask.sum())


def resolve(options: BcuOptions, teacher: nn.Module, images: Tensor, *, device: Device) -> BcuOptions:
    """The options with everything that was left open decided for this teacher and these images.

    Args:
        options: The user's.
        teacher: The suspicious classifier.
        images: uint8 ``[N, C, H, W]``: those that it will be distilled on.
        device: Where to ask the teacher.
    """
    epochs, padding, flip = options.epochs, options.crop_padding, options.flip
    if epochs is None:
        steps_per_epoch = ceil(len(images) / options.batch_size)
        steps = min(max(PAPER_EPOCHS * steps_per_epoch, FEWEST_STEPS), MOST_STEPS)
        epochs = ceil(steps / steps_per_epoch)
    if padding is None:
        padding = min(images.shape[-2:]) // 8
    if flip is None:
        some = images[:: max(1, len(images) // 1000)]
        same = predict(teacher, some, device) == predict(teacher, some.flip(-1), device)
        flip = float(same.float().mean()) >= MIRROR_AGREEMENT
    return replace(options, epochs=epochs, crop_padding=padding, flip=flip)


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(teacher ‖ student) at a temperature, averaged over the batch (Eq. 2), without the factor T².

    Args:
        student_logits: float ``[N, K]``.
        teacher_logits: float ``[N, K]``.
        temperature: Above 0.
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A cleansing that is ready to run.

    Args:
        student: The classifier to be.
        training: Of the student.
        options: With everything decided that was left open.
        reinitialised: What was drawn anew, layer by layer.
    """

    student: Classifier
    training: Training
    options: BcuOptions
    reinitialised: list[Reinitialised]


def prepare(teacher: Classifier, images: Tensor, options: BcuOptions, *, device: Device) -> Prepared:
    """Make the student, and the training that cleanses it.

    Args:
        teacher: The suspicious classifier, images in [0, 1] -> logits ``[N, K]``; moved to ``device`` and
            put into eval mode.
        images: uint8 ``[N, C, H, W]``, unlabeled.
        options: The method's parameters.
        device: Where to train.
    """
    options = resolve(options, teacher, images, device=device)
    student = copy.deepcopy(teacher).cpu().eval()
    done = reinitialise(student.network, images[:2].float() / 255.0, options)
    teacher = teacher.to(device.torch, memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher.eval().requires_grad_(False)
    start, end = options.temperature

    def objective(views: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - needs no labels
        with torch.no_grad():
            targets = teacher(views)
        return distillation_loss(student(views), targets, start + (end - start) * progress)

    how = TrainingOptions(
        epochs=options.epochs or 0,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        augmentation=Augmentation(crop_padding=options.crop_padding or 0, flip=bool(options.flip)),
    )
    training = Training(student, images, objective, how, device=device, seed=options.seed)
    return Prepared(student=student, training=training, options=options, reinitialised=done)
