"""Searches of a network for changes that lead images to a class, and the success of what they find.

A search is the training of an :class:`~bcu_cli.evaluation.adversary.Adversary` against the network. Success
is measured on held-out images, against the original's predictions in place of labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bcu_cli.defenses.adversarial import patches, sinusoids
from bcu_cli.defenses.adversarial.residual_search import spread, success_on
from bcu_cli.evaluation import class_screening
from bcu_cli.evaluation.adversary import KINDS, UNIVERSAL, WEIGHT_FLOOR, Adversary, Limits, odds
from bcu_cli.evaluation.measures import Proportion
from bcu_cli.evaluation.suitability import confidence_and_answer
from bcu_cli.images.augmentation import NO_AUGMENTATION
from bcu_cli.training.inference import in_batches, predict
from bcu_cli.training.loop import Stage
from bcu_cli.triggers.base import to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

    from bcu_cli.defenses.adversarial.effort import Effort
    from bcu_cli.defenses.adversarial.residual_search import Change
    from bcu_cli.images.stream import Images
    from bcu_cli.models import Classifier
    from bcu_cli.training.devices import Device
    from bcu_cli.training.loop import Training

LIMITS = Limits(patch=0.03, perturbation=0.06, warp=0.125)
"""Limits of the searches on an original."""
MIN_START_SUCCESS = 0.5
"""Least success of a listed patch that a search starts at."""
FEWEST_ANSWERS, MOST_ANSWERS = 50, 100_000
"""Predictions while triggers are tried on a network: fewest for each trigger, and most for all together."""


@dataclass(frozen=True)
class Weaknesses:
    """What misleads a network before it is cleansed.

    Args:
        adversary: Universal changes, and how often each is to be sampled.
        sinusoids: Weight of each kind of sinusoidal pattern, float ``[NUM_KINDS]``.
    """

    adversary: Adversary
    sinusoids: Tensor


class Searcher:
    """Searches the original and what is made of it, and measures what it finds.

    Args:
        original: The original network, in eval mode on the device.
        images: Images to search on, uint8 ``[N, C, H, W]``.
        held_out: Images to measure on, uint8 ``[M, C, H, W]``.
        effort: Numbers of steps and images.
        training: Makes the training of a module on the images: ``Auto.training_of``.
        device: The device.
        seed: Seed of all searches.

    Attributes:
        classes: The classes that triggers are searched for; all, until :meth:`choose_classes`.
    """

    def __init__(
        self,
        original: Classifier,
        images: Images,
        held_out: Tensor,
        effort: Effort,
        *,
        training: Callable[..., Training],
        device: Device,
        seed: int,
    ) -> None:
        self.original = original
        self.images = images
        self.held_out = held_out
        self.effort = effort
        self.training = training
        self.device = device
        self.seed = seed
        self.classes = list(range(original.num_classes))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the images, (C, H, W)."""
        return self.original.preprocessing.input_size

    @property
    def answers(self) -> Tensor:
        """The original's predictions on the held-out images, int64 ``[M]``."""
        return self._predictions[0]

    @property
    def confident(self) -> Tensor:
        """Index of the half of the held-out images on which the original is most confident, int64."""
        return self._predictions[1]

    @cached_property
    def _predictions(self) -> tuple[Tensor, Tensor]:
        confidence, answers = in_batches(
            lambda images: confidence_and_answer(self.original(images)),
            self.held_out,
            self.device,
            network=self.original,
        ).T
        return answers.long(), confidence.topk(ceil(len(confidence) / 2)).indices

    def selected(self, most: int) -> Tensor:
        """At most ``most`` of the images to search on, evenly spaced."""
        return self.images[spread(torch.arange(len(self.images)), most)]

    def choose_classes(self) -> Iterator[Stage]:
        """Choose the classes to search triggers for: all, or those that universal changes lead to."""
        count = self.original.num_classes
        if count <= class_screening.MOST_CLASSES:
            return
        adversary = class_screening.UntargetedAdversary(self.shape, LIMITS, seed=self.seed)
        adversary.to(self.device.torch)
        yield self.stage(adversary, self.original, "screening classes")
        reached = [
            [share.value for share in self.success_by_class(self.original, on_bytes(adversary, slot, kind))]
            for slot in range(class_screening.STARTS)
            for kind in range(len(UNIVERSAL))
        ]
        success = torch.tensor(reached).view(class_screening.STARTS, len(UNIVERSAL), count)
        self.classes = class_screening.candidates(
            success.amax(0),
            self.seed,
            most=class_screening.MOST_CLASSES,
            controls=class_screening.RANDOM_CLASSES,
        )

    def weaknesses(self, network: Classifier, title: str) -> Generator[Stage, None, Weaknesses]:
        """Search a network for what misleads it before it is cleansed."""
        adversary = self.starting_adversary(network, LIMITS, self.seed)
        yield self.stage(adversary, network, title)
        adversary.set_sampling_weights(self.successes(adversary, network))
        successes = [share for _, _, share in self.try_sinusoids(network, self.seed)]
        weights = [WEIGHT_FLOOR + odds(success) for success in successes]
        return Weaknesses(adversary, torch.tensor(weights, device=self.device.torch))

    def adversary(self, limits: Limits, seed: int, targets: Sequence[int] | None = None) -> Adversary:
        """A new adversary on the device, for the classes that are searched or for others."""
        chosen = self.classes if targets is None else targets
        return Adversary(chosen, self.shape, limits, seed=seed).to(self.device.torch)

    def starting_adversary(self, network: Classifier, limits: Limits, seed: int) -> Adversary:
        """An adversary whose patches start at those listed ones that succeed most often on a network.

        Gradients alone miss small sharp patches on large images. A class that no listed patch reaches on
        ``MIN_START_SUCCESS`` of a few images starts at random.
        """
        adversary = self.adversary(limits, seed)
        listed = patches.draw(self.shape, seed, largest=limits.patch)[:: self.effort.patch_interval]
        images = self.selected(patches.SCREENING_IMAGES)
        if not listed:
            return adversary
        without = predict(network, images, self.device)
        answers = patches.answers(listed, images, [network], without, self.device)
        for slot, target in enumerate(adversary.targets.tolist()):
            hits, of = (answers == target).sum(1), int((without != target).sum())
            best = listed[int(hits.argmax())]
            if of and int(hits.max()) >= MIN_START_SUCCESS * of:
                adversary.start_patch(slot, best.pixels / 255.0, best.top, best.left)
        return adversary

    def stage(
        self,
        adversary: Adversary,
        network: Classifier,
        title: str,
        *,
        steps: int | None = None,
        batch_size: int | None = None,
    ) -> Stage:
        """A stage that trains an adversary's universal changes against a network.

        Args:
            adversary: The adversary.
            network: The network.
            title: Title of the stage.
            steps: Number of steps; None is that of a search on the original.
            batch_size: Images in a step; None is that of a cleansing.
        """

        def objective(views: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001 - needs no labels
            return adversary.attack(network, views, len(UNIVERSAL))[1]

        how: dict[str, Any] = {"schedule": "constant", "augmentation": NO_AUGMENTATION}
        if batch_size is not None:
            how["batch_size"] = batch_size
        steps = self.effort.search_steps if steps is None else steps
        training = self.training(adversary, objective, steps=steps, optimizer=adversary.optimizer(), **how)
        return Stage(title=title, training=training)

    def successes(
        self, adversary: Adversary, network: Classifier, kinds: Sequence[str] = UNIVERSAL
    ) -> dict[tuple[str, int], Proportion]:
        """Success of an adversary's changes on a network, by kind and target class."""
        targets = [each for each in adversary.targets.tolist() if bool((self.answers != each).any())]
        most = max(FEWEST_ANSWERS, MOST_ANSWERS // (len(UNIVERSAL) * max(1, len(targets))))
        slots = {target: slot for slot, target in enumerate(adversary.targets.tolist())}
        return {
            (kind, target): self.success(
                network, on_bytes(adversary, slots[target], UNIVERSAL.index(kind)), target, most
            )
            for kind in kinds
            for target in targets
        }

    def success(
        self, network: Classifier, change: Change, target: int, most: int | None = None
    ) -> Proportion:
        """Success of a change on the held-out images that the original predicts as another class."""
        return success_on(network, self.held_out, self.answers, change, target, self.device, most=most)

    def success_by_class(self, network: Classifier, change: Change) -> list[Proportion]:
        """Success of a change for each class, on held-out images that the original predicts as another."""
        shown = spread(torch.arange(len(self.answers)), self.effort.sinusoid_images)
        images, expected = self.held_out[shown], self.answers[shown]
        answers = predict(network, images, self.device, transform=change)
        classes = network.num_classes
        hits = torch.bincount(answers[answers != expected], minlength=classes)
        of = (len(expected) - torch.bincount(expected, minlength=classes)).clamp(min=1)
        return [Proportion(hits=hit, of=count) for hit, count in zip(hits.tolist(), of.tolist(), strict=True)]

    def try_sinusoids(self, network: Classifier, seed: int) -> list[tuple[Change, int, Proportion]]:
        """One sinusoidal pattern of each kind, its most frequent class on a network, and its success."""
        tried = []
        for pattern in sinusoids.one_per_kind(seed):
            successes = self.success_by_class(network, pattern)
            target = max(range(len(successes)), key=lambda each: successes[each].value)
            tried.append((pattern, target, successes[target]))
        return tried


def on_bytes(adversary: Adversary, slot: int, kind: int) -> Change:
    """One of the adversary's changes as a function of uint8 images."""

    def change(images: Tensor) -> Tensor:
        slots = torch.full((len(images),), slot, device=images.device)
        counts = [len(images) if each == kind else 0 for each in range(len(KINDS))]
        return to_bytes(adversary(images.float() / 255.0, slots, counts))

    return change
